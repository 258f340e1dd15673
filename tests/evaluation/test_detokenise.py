"""Detokenisers on texts worked out by hand from the published rules, oddities included."""

import pytest

from ddm_jax.evaluation.likelihood.detokenisers import DETOKENISERS, detokenise

CASES = {
    "wikitext": {
        "": "",
        " = Robert <unk> = \n": " = Robert <unk> =\n",
        " = = = Early work = = = \n": " === Early work ===\n",
        " = = = = Deep = = = = \n": " ==== Deep ====\n",
        "a co @-@ star , in 1 @,@ 000 films @.@ 5": "a co-star, in 1,000 films.5",
        # the rule of the hyphen comes first and takes the space that the comma's rule needs
        "1 @,@ @-@ 2": "1 @,@-2",
        # marks go one kind at a time, and full stops come before commas
        "so : a ; b . c ! d ? e , f": "so: a; b. c! d? e, f",
        "a , . b": "a ,. b",
        "a . . b": "a. . b",
        "the end .": "the end .",
        "( a ) [ b ] { c }": "(a) [b] {c}",
        "( a [ b )": "(a [ b)",
        'he said " so " and " no': 'he said "so" and " no',
        # any two quotes are a pair, the apostrophe too; the third is left over
        "the players ' and ' odd '": "the players'and' odd '",
        "it 's": "it's",
        "20 ° C": "20°C",
        "about N of N N N": "about 1 of 1 N N",
        "/' 5/": "/'[0-9]/",
        " \n": "\n",
    },
    "ptb": {
        "it 's the traders ' own": "it's the traders' own",
        "it did n't \\/ would n't": "it didn't / wouldn't",
        # neighbours share their space; N at an end has none
        "up N N N N points": "up 1 1 1 1 points",
        "N $ N and # N": "N $1 and # N",
        "a $ N b # N c": "a $1 b #1 c",
        "mr. <unk> of <unk>": "mr. ? of ?",
    },
    "lm1b": {
        "see http : / / a and https : / / b": "see http://a and https://b",
        "it 's over . Now it ends .": "it's over. Now it ends.",
        "a ) . b": "a ) . b",  # only a word draws the full stop
        "what ? no ! who ?": "what? no! who?",
        "really !": "really!",
        "a , b : c ; d / e": "a, b: c; d/e",
        'he said " it is so " , ( or not ) [ b ]': 'he said "it is so", (or not) [b]',
        "( a ( b ) )": "( a (b) )",
        "( )": "( )",
        "$ 5 and £ 6": "$5 and £6",
    },
    "lambada": {
        "“ so ” he said \n": '\n" so " he said',
        " \u3000a\t": "\na",
        "": "\n",
    },
    # WikiText's rules, then LM1B's
    "scientific_papers": {
        "( a ) . the end .": "(a). the end.",
        "= = a = = , $ 5": "== a ==, $5",
    },
    "none": {" = a = \n": " = a = \n"},
}


@pytest.mark.parametrize("name", DETOKENISERS)
def test_published_rules(name):
    for text, expected in CASES[name].items():
        assert detokenise(name, text) == expected, text
