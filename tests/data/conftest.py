import pytest

from ddm_jax.data.prepare import prepare
from ddm_jax.data.prepared import PreparedSet, PrepareSpec
from tests.data.corpora import make_documents, write_jsonl


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(300)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> str:
    """A `data.source` with the documents."""
    return f"jsonl:{write_jsonl(tmp_path_factory.mktemp('corpus') / 'all.jsonl', documents)}"


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> PreparedSet:
    """Bytes in blocks of 32."""
    spec = PrepareSpec(
        corpus, "bytes", length=32, pack="wrap", validation_fraction=0.1, test_fraction=0.1
    )
    return prepare(spec, tmp_path_factory.mktemp("sets") / "wrapped", progress=False)
