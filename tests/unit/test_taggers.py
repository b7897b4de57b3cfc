"""The taggers of the phrase step, on data in the form that NLTK's and spaCy's own downloads have."""

import json
import random
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nltk
import pytest
from nltk.tag.perceptron import PerceptronTagger as Trainer

from cloc.errors import ConfigError
from cloc.labeling.phrases import GRAMMAR, STOP_WORDS, PhraseExtractor, words
from cloc.labeling.taggers import BREAKS, LexiconTagger, PerceptronTagger, SpacyTagger, TaggerData, make_tagger

NAME = "averaged_perceptron_tagger_eng"
# The nonsense words can be known from the data alone: the lexicon does not have them.
SENTENCES = [
    [("a", "DT"), ("blick", "JJ"), ("wug", "NN"), ("glorps", "VBZ"), (".", ".")],
    [("the", "DT"), ("dax", "JJ"), ("wugs", "NNS"), ("glorp", "VBP"), ("a", "DT"), ("fep", "NN"), (".", ".")],
    [("two", "CD"), ("blick", "JJ"), ("feps", "NNS"), (",", ","), ("and", "CC"), ("the", "DT"), ("wug", "NN")],
    [("the", "DT"), ("fep", "NN"), ("of", "IN"), ("a", "DT"), ("dax", "JJ"), ("wug", "NN"), ("glorps", "VBZ")],
] * 8
CAPTION = "The dax wug glorps, and a blick fep of the wugs."
PHRASES = ["dax wug", "blick fep", "wugs"]


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    """A perceptron's three JSON files: weights, tagdict, classes."""
    state = random.getstate()
    random.seed(0)  # NLTK shuffles the sentences
    trainer = Trainer(load=False)
    trainer.train([list(sentence) for sentence in SENTENCES])
    random.setstate(state)
    names = [name.split(".")[1] for name in trainer.param_files("eng")]
    assert list(trainer.param_files("eng")) == [f"{NAME}.{name}.json" for name in names]
    return dict(zip(names, trainer.encode_json_obj(), strict=True))


def _write(root: Path, parts: dict[str, object]) -> Path:
    folder = root / "taggers" / NAME
    folder.mkdir(parents=True)
    for name, content in parts.items():
        (folder / f"{NAME}.{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def nltk_data(tmp_path, parts) -> Path:
    _write(tmp_path / "nltk_data", parts)
    return tmp_path / "nltk_data"


def _pack(root: Path) -> None:
    """The zip alone, as `nltk.download` leaves it where it does not extract."""
    folder = root / "taggers" / NAME
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{NAME}/{path.name}")
            path.unlink()
    folder.rmdir()


def test_nltk_tags_by_its_data(nltk_data):
    extract = PhraseExtractor(tagger="nltk", max_phrases=20, nltk_data=str(nltk_data))
    assert extract([CAPTION]) == PHRASES
    assert PhraseExtractor(tagger="lexicon", max_phrases=20)([CAPTION]) != PHRASES


def test_nltk_reads_the_zip_too(nltk_data):
    words = ["the", "dax", "wug", "glorps", "."]
    unpacked = PerceptronTagger(folder=str(nltk_data))(words)
    _pack(nltk_data)
    assert PerceptronTagger(folder=str(nltk_data))(words) == unpacked == ["DT", "JJ", "NN", "VBZ", "."]


@pytest.mark.parametrize("packed", [False, True])
def test_nltk_s_own_loader_reads_the_same_files_and_says_the_same(nltk_data, monkeypatch, packed):
    if packed:
        _pack(nltk_data)
    monkeypatch.setattr(nltk.data, "path", [str(nltk_data)])
    draw = random.Random(0)
    vocabulary = sorted({word for sentence in SENTENCES for word, _ in sentence} - {".", ","})
    found = PerceptronTagger(folder="")
    own = Trainer()
    for _ in range(50):
        words = [draw.choice([*vocabulary, "unheard", "2019", "well-known"]) for _ in range(12)]
        assert found(words) == [tag for _, tag in own.tag(words)]


def test_breaks_are_tagged_by_themselves_whatever_the_data_says(tmp_path, parts):
    swapped = {**parts, "tagdict": {**parts["tagdict"], ".": "NN", ",": "NN"}}
    _write(tmp_path, swapped)
    extract = PhraseExtractor(tagger="nltk", max_phrases=20, nltk_data=str(tmp_path))
    assert extract(["the wug. a fep, the wugs"]) == ["wug", "fep", "wugs"]


def test_nltk_without_data_names_the_setting_and_the_command(tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as error:
        PhraseExtractor(tagger="nltk", max_phrases=20, nltk_data=str(tmp_path))
    assert str(error.value) == (
        f"grounding.nltk_data: {NAME} is not in {str(tmp_path)!r}; python -m nltk.downloader -d {tmp_path} {NAME}, "
        "or set grounding.tagger=lexicon"
    )
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=rf"grounding.nltk_data is empty.*python -m nltk.downloader {NAME}"):
        PhraseExtractor(tagger="nltk", max_phrases=20)


@pytest.mark.parametrize("damage", ["missing", "cut", "binary", "zip"])
def test_nltk_with_damaged_data_names_the_file(nltk_data, damage):
    weights = nltk_data / "taggers" / NAME / f"{NAME}.weights.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_text(weights.read_text()[:100])
    elif damage == "binary":
        weights.write_bytes(b"\x80\x81")
    else:
        _pack(nltk_data)
        archive = nltk_data / "taggers" / f"{NAME}.zip"
        archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"cannot read averaged_perceptron_tagger_eng\.weights\.json in .*"):
        PerceptronTagger(folder=str(nltk_data))


def test_nltk_with_another_tag_set_is_refused(tmp_path, parts):
    _write(tmp_path, {**parts, "classes": ["NOUN", "VERB"]})
    with pytest.raises(ConfigError, match="no tagger of Penn Treebank tags"):
        PerceptronTagger(folder=str(tmp_path))


@pytest.mark.parametrize(
    ("tagger", "module", "message"),
    [
        ("lexicon", "textblob.en", r"'lexicon' needs textblob .*; pip install 'cloc\[label\]'"),
        ("nltk", "nltk.tag.perceptron", r"'nltk' needs nltk .*; pip install 'cloc\[label\]'"),
        ("spacy", "spacy", r"'spacy' needs spacy .*; pip install 'cloc\[spacy\]'"),
    ],
)
def test_missing_library_is_named_with_the_extra(monkeypatch, tagger, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"grounding\.tagger: {message}"):
        make_tagger(tagger, TaggerData(spacy_model="en_core_web_sm"))


@pytest.fixture
def hasty():
    """Threads take turns a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_lexicon_is_whole_for_every_thread_that_makes_a_tagger():
    """TextBlob fills its lexicon at first use: another thread must not see it half full."""
    from textblob.en import lexicon

    rare = ["key", "zebra", "orange", "leaves", "yellow", "violins", "wooden", "zealous"]
    expected = LexiconTagger()(rare)
    barrier = threading.Barrier(8)

    def make(_: int) -> list[str]:
        barrier.wait()
        return LexiconTagger()(rare)

    dict.clear(lexicon)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(make, range(8))) == [expected] * 8


CAPTIONS = [f"a red key and {number} cats of the dax wug {number}, a blick fep" for number in range(200)]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("tagger", ["lexicon", "nltk"])
def test_threads_get_what_one_alone_gets(nltk_data, tagger):
    extract = PhraseExtractor(tagger=tagger, max_phrases=20, nltk_data=str(nltk_data))
    alone = [extract([caption]) for caption in CAPTIONS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda caption: extract([caption]), CAPTIONS)) == alone


# spaCy is an extra of its own (230 MB): these run where it is installed, `pip install 'cloc[spacy]'`.


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    """A small pipeline trained here and saved as spaCy's own are, with components that tagging does not need."""
    spacy = pytest.importorskip("spacy", reason="the extra `spacy` is not installed")
    from spacy.training import Example

    nlp = spacy.blank("en")
    small = {"model": {"@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 16, "depth": 1}}
    small["model"] |= {"embed_size": 200, "window_size": 1, "maxout_pieces": 2, "subword_features": True}
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("tok2vec", config=small)
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 16}
    nlp.add_pipe("tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}})
    examples = []
    for sentence in SENTENCES:
        words, tags = zip(*sentence, strict=True)
        doc = spacy.tokens.Doc(nlp.vocab, words=list(words))
        examples.append(Example.from_dict(doc, {"tags": list(tags)}))
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(40):
        nlp.update(examples, sgd=optimizer)
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "WUG", "pattern": "wug"}])
    folder = tmp_path_factory.mktemp("pipeline")
    nlp.to_disk(folder)
    return str(folder)


def test_spacy_tags_by_its_pipeline_with_nothing_else_in_it(pipeline):
    extract = PhraseExtractor(tagger="spacy", max_phrases=20, spacy_model=pipeline)
    assert extract([CAPTION]) == PHRASES
    tagger = SpacyTagger(pipeline=pipeline)
    assert tagger._nlp.component_names == ["tok2vec", "tagger"]
    assert tagger(["the", "wug", ",", "a", "fep", "."]) == ["DT", "NN", ",", "DT", "NN", "."]
    assert tagger([]) == []


@pytest.mark.usefixtures("hasty")
def test_spacy_says_the_same_in_threads_and_does_not_grow(pipeline):
    extract = PhraseExtractor(tagger="spacy", max_phrases=20, spacy_model=pipeline)
    alone = [extract([caption]) for caption in CAPTIONS]
    known = len(extract._tag._nlp.vocab.strings)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda caption: extract([caption + " unheard"]), CAPTIONS))
        assert list(pool.map(lambda caption: extract([caption]), CAPTIONS)) == alone
    assert len(extract._tag._nlp.vocab.strings) == known


def test_spacy_without_the_pipeline_names_setting_and_command(tmp_path):
    pytest.importorskip("spacy", reason="the extra `spacy` is not installed")
    message = r"grounding\.spacy_model: cannot load 'en_core_web_none' .*python -m spacy download en_core_web_sm"
    with pytest.raises(ConfigError, match=message):
        SpacyTagger(pipeline="en_core_web_none")
    with pytest.raises(ConfigError, match=r"grounding\.spacy_model: cannot load "):
        SpacyTagger(pipeline=str(tmp_path))


def test_spacy_pipeline_without_penn_tags_is_refused(tmp_path):
    spacy = pytest.importorskip("spacy", reason="the extra `spacy` is not installed")
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path)
    with pytest.raises(ConfigError, match="no tagger of Penn Treebank tags"):
        SpacyTagger(pipeline=str(tmp_path))


# The real data: NLTK's own tagger, and captions by people.
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not (SHARED / "nltk_data").is_dir(), reason="../shared/data is not here")


@pytest.fixture(scope="module")
def captions() -> list[str]:
    annotations = json.loads((SHARED / "coco_val2017_dev" / "captions.json").read_text())["annotations"]
    return [item["caption"] for item in annotations[:600]]


@needs_shared
@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        (
            "Two young men in white lab coats are looking at a computer screen in a bright office.",
            ["young men", "white lab coats", "computer screen", "bright office"],
        ),
        (
            "An elderly woman wearing a blue headscarf sells fresh vegetables at an outdoor market.",
            ["elderly woman", "blue headscarf", "fresh vegetables", "outdoor market"],
        ),
        ("The large brown bear has a black nose.", ["large brown bear", "black nose"]),
        ("Free stock photo of a red key left of two blue apples - HD", ["red key", "blue apples"]),
        ("two white leaves and the lights of a bus", ["white leaves", "lights", "bus"]),
        ("", []),
    ],
)
def test_nltk_s_own_data_on_written_examples(caption, phrases):
    extract = PhraseExtractor(tagger="nltk", max_phrases=20, nltk_data=str(SHARED / "nltk_data"))
    assert extract([caption]) == phrases


@needs_shared
def test_nltk_s_own_data_gives_what_pos_tag_and_the_parser_give(captions, monkeypatch):
    """METHOD's recipe from NLTK's parts, as its own documentation has it."""
    monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data")])
    extract = PhraseExtractor(tagger="nltk", max_phrases=20)
    chunker = nltk.RegexpParser(GRAMMAR)
    for caption in captions[:200]:
        found = words(caption)
        tagged = [(word, word if word in BREAKS else tag) for word, tag in nltk.pos_tag(found)]
        chunks = [chunk.leaves() for chunk in chunker.parse(tagged).subtrees(lambda tree: tree.label() == "NP")]
        phrases = [[word for word, tag in chunk if tag != "DT"] for chunk in chunks]
        kept = [" ".join(phrase) for phrase in phrases if not STOP_WORDS.issuperset(phrase)]
        assert extract([caption]) == list(dict.fromkeys(kept))


@needs_shared
def test_the_lexicon_finds_nine_tenths_of_what_the_perceptron_finds(captions):
    perceptron = PhraseExtractor(tagger="nltk", max_phrases=20, nltk_data=str(SHARED / "nltk_data"))
    lexicon = PhraseExtractor(tagger="lexicon", max_phrases=20)
    pairs = [(set(lexicon([caption])), set(perceptron([caption]))) for caption in captions]
    common = sum(len(ours & theirs) for ours, theirs in pairs)
    assert common / sum(len(ours) for ours, _ in pairs) > 0.9
    assert common / sum(len(theirs) for _, theirs in pairs) > 0.9
