import pytest

from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.data.sets.text import PreparedText, TextSpec
from ddm_jax.data.sources.pair_files import Pair
from tests.data.corpora import make_documents, make_pairs, pair_spec, write_jsonl, write_pairs


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(300)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> str:
    """A `data.source` with the documents."""
    return f"jsonl:{write_jsonl(tmp_path_factory.mktemp('corpus') / 'all.jsonl', documents)}"


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> PreparedText:
    """Bytes in blocks of 32."""
    spec = TextSpec(
        corpus, "bytes", length=32, pack="wrap", validation_fraction=0.1, test_fraction=0.1
    )
    return prepare_text(spec, tmp_path_factory.mktemp("sets") / "wrapped", progress=False)


@pytest.fixture(scope="session")
def all_pairs() -> list[Pair]:
    return make_pairs(300)


@pytest.fixture(scope="session")
def pair_source(tmp_path_factory: pytest.TempPathFactory, all_pairs: list[Pair]) -> str:
    """A `data.source` with the pairs."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "all.jsonl", all_pairs)


@pytest.fixture(scope="session")
def pairs_set(tmp_path_factory: pytest.TempPathFactory, pair_source: str) -> PreparedPairs:
    """Their bytes, prepared."""
    out = tmp_path_factory.mktemp("sets") / "pairs"
    return prepare_pairs(pair_spec(pair_source), out, progress=False)
