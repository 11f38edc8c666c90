"""Evaluation: which captions are asked for, and what is said of the answers."""

import json

import numpy as np

from ops.caption_evaluation import CaptionEvaluation, KindFigures, kind_figures
from ops.evaluation import Evaluation, SplitRecall
from ops.evaluation_queries import EvaluationQueries, GalleryImage, queries_by_split
from ops.jobs.known_items import rank_of
from ops.posting_ablations import AblatedRecall, PostingAblations
from ops.relevance_evaluation import KnownRelevance, RelevanceEvaluation
from schemas.records import ManifestEntry
from schemas.retrieval_settings import RetrievalSettings

RECALL = {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "R@20": 1.0}
SPLIT = SplitRecall(4, RECALL, RECALL, RECALL, RECALL, 12.5, (0.3, 0.95))


def entry(image_id: str, captions: tuple[str, ...], held_out: tuple[str, ...]) -> ManifestEntry:
    return ManifestEntry(image_id, f"/{image_id}.png", captions, held_out)


def image(key: int, *, trained: bool) -> GalleryImage:
    return GalleryImage(key, f"i{key}", "file:///x.png", trained)


def test_seen_images_are_asked_for_by_held_out_captions_only() -> None:
    entries = [
        entry("i1", ("read in training",), ("held out", " ")),
        entry("i2", ("read in training",), ()),
        entry("i3", ("a caption",), ()),
        entry("i4", ("a caption",), ("held out",)),
        entry("not indexed", ("a caption",), ("held out",)),
    ]
    images = [image(1, trained=True), image(2, trained=True)]
    images += [image(3, trained=False), image(4, trained=False)]
    assert queries_by_split(entries, images, None, 0) == {
        "seen": EvaluationQueries(("held out",), (1,)),
        "unseen": EvaluationQueries(("a caption", "held out"), (3, 4)),
    }
    assert queries_by_split(entries, images[:2], None, 0).keys() == {"seen"}
    assert queries_by_split(entries, [], None, 0) == {}


def test_a_sample_keeps_the_order_and_repeats_itself_with_its_seed() -> None:
    entries = [entry(f"i{key}", (), (f"caption {key}",)) for key in range(40)]
    images = [image(key, trained=key % 2 == 0) for key in range(40)]
    splits = queries_by_split(entries, images, 6, seed=3)
    assert [len(queries) for queries in splits.values()] == [6, 6]
    assert splits == queries_by_split(entries, images, 6, seed=3)
    assert splits != queries_by_split(entries, images, 6, seed=4)
    for queries in splits.values():
        assert list(queries.image_keys) == sorted(queries.image_keys)
        assert list(queries.texts) == [f"caption {key}" for key in queries.image_keys]


def test_batches_are_all_queries_in_order() -> None:
    queries = EvaluationQueries(tuple(map(str, range(37))), tuple(range(37)))
    batches = list(queries.batches())
    assert [key for batch in batches for key in batch.image_keys] == list(range(37))
    assert [text for batch in batches for text in batch.texts] == list(queries.texts)
    assert max(map(len, batches)) <= 16


def test_ranks_count_from_one() -> None:
    keys = np.array([7, 3, 9])
    assert [rank_of(keys, key) for key in (7, 9, 4)] == [1, 3, None]
    assert rank_of(np.empty(0, np.int64), 7) is None


def test_an_evaluation_is_read_as_it_was_written() -> None:
    settings = RetrievalSettings(beams=10, postings=2)
    evaluation = Evaluation(3, 240, settings, 0, {"seen": SPLIT, "unseen": SPLIT})
    document = json.loads(json.dumps(evaluation.to_json()))
    assert document["candidates"] == {
        name: split.mean_candidates for name, split in evaluation.splits.items()
    }
    assert (document["beams"], document["postings"], document["gallery"]) == (10, 2, 240)
    assert document["splits"]["seen"]["ours_R@10_95%"] == [0.3, 0.95]
    assert "ablations" not in document
    assert Evaluation.from_json(document) == evaluation


def test_captions_are_told_with_own_and_exchanged_identifiers() -> None:
    words = {"colour": KindFigures(0.8, 0.3, 0.9, 0.75), "shape": KindFigures(0.1, 0.1, 0.0, None)}
    captions = CaptionEvaluation("unseen", 100, 1.25, 0.5, 0.93, (0.86, 0.97), 88, words)
    evaluation = Evaluation(3, 240, RetrievalSettings(), 0, {"unseen": SPLIT}, captions=captions)
    document = json.loads(json.dumps(evaluation.to_json()))
    assert (document["captions"]["own"], document["captions"]["shuffled"]) == (1.25, 0.5)
    assert document["captions"]["words"]["colour"]["own_where_nearest"] == 0.75
    assert Evaluation.from_json(document) == evaluation
    lines = evaluation.to_text().splitlines()[-3:]
    assert "CIDEr-D 1.25, of exchanged ones 0.50; the own one is likelier in 93%" in lines[0]
    assert lines[1].endswith("nearest training caption 90%, of those 75%")
    assert lines[2].endswith("nearest training caption 0%")


def test_relevance_is_told_by_kind_and_split() -> None:
    below = {"shuffled": 0.9, "noise": 1.0, "all": 0.95}
    relevance = RelevanceEvaluation(below, {"unseen": KnownRelevance(80, 0.925, 0.975)})
    evaluation = Evaluation(3, 240, RetrievalSettings(), 0, {"unseen": SPLIT}, relevance=relevance)
    document = json.loads(json.dumps(evaluation.to_json()))
    assert document["relevance"]["known"]["unseen"]["own_above"] == 0.925
    assert Evaluation.from_json(document) == evaluation
    lines = evaluation.to_text().splitlines()[-2:]
    assert lines[0] == "relevance of nonsense below 0.5: 95.0% (shuffled 90.0%, noise 100.0%)"
    assert lines[1].endswith("unseen, at least 0.5: own image 92.5%, best of the answer 97.5%")


def test_words_are_compared_where_the_encoders_nearest_caption_is_right() -> None:
    own = [{"colour": right} for right in (True, True, False, False)]
    nearest = [{"colour": right} for right in (True, False, True, False)]
    figures = kind_figures("colour", own, own[::-1], nearest)
    assert figures == KindFigures(own=0.5, shuffled=0.5, nearest=0.5, own_where_nearest=0.5)
    never = [{"colour": False}] * 4
    assert kind_figures("colour", own, own, never).own_where_nearest is None


def test_ablations_are_told_only_when_they_were_measured() -> None:
    ablated = {"unseen": AblatedRecall(RECALL, 8.0)}
    ablations = PostingAblations(ablated, ablated, ablated, 0.5)
    evaluation = Evaluation(3, 240, RetrievalSettings(), 0, {"unseen": SPLIT}, ablations)
    assert evaluation.to_json()["ablations"] == {
        "m=1": {"unseen": RECALL | {"mean_candidates": 8.0}},
        "analytic": {"unseen": RECALL | {"mean_candidates": 8.0}},
        "unguided": {"unseen": RECALL | {"mean_candidates": 8.0}},
        "inductive_analytic_agreement": 0.5,
    }


def test_the_table_has_a_line_for_each_search() -> None:
    lines = Evaluation(3, 240, RetrievalSettings(), 1, {"seen": SPLIT}).to_text().splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "R@20"]
    assert lines[1] == "seen: 4 queries, 12 candidates scored a query"
    assert lines[2].split() == ["ours", "25.0", "50.0", "75.0", "100.0"]
    assert [line[:22].strip() for line in lines[3:6]] == ["paper mode", "exact dense", "two-tower"]
    assert lines[6] == "gallery 240 images · 20 beams · invalid identifiers 1"
