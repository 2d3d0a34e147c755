"""What runs are said to be judged by."""

from regrow.training.measures import ACCURACY, MAP, SEVERAL, measure_of
from regrow.training.statistics import summarise


def test_rows_without_a_metric_have_the_accuracy():
    assert measure_of([]) == measure_of([{"accuracy": 0.5}, {"metric": None}]) == ACCURACY
    assert ACCURACY.entry == {}


def test_a_metric_is_named_by_its_rows():
    assert measure_of([{"metric": "mAP"}, {"metric": "mAP"}]) == MAP
    assert MAP.entry == {"metric": "mAP"}
    assert not MAP.guessed
    other = measure_of([{"metric": "mIoU"}])
    assert (other.name, other.title) == ("mIoU", "mIoU")


def test_runs_of_different_metrics_have_only_scores_in_common():
    assert measure_of([{"metric": "mAP"}, {}]) == SEVERAL


def test_summaries_say_it_and_those_of_accuracy_stay_as_they_were():
    run = {"method": "iee", "seed": 0, "accuracy": 0.25}
    [plain] = summarise([run])
    assert not {"metric", "mAP50"} & plain.keys()
    [row] = summarise([{**run, "metric": "mAP", "mAP50": 0.5}])
    assert (row["metric"], row["mean"], row["mAP50"]) == ("mAP", 0.25, 0.5)
    assert row.keys() - plain.keys() == {"metric", "mAP50"}
