import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_more.evaluation.prediction_parts import as_table, class_columns, first_look


def test_columns_of_classes_are_distinct_from_ours_and_from_each_other():
    assert class_columns(["cat", "labels", "image_id", "cat", "labels (class)", "cause"]) == [
        "cat", "labels (class)", "image_id (class)", "cat (class)", "labels (class) (class)", "cause (class)"
    ]  # fmt: skip


def test_rows_are_probabilities_labels_and_causes():
    logits = np.array([[0.0, 40.0], [-40.0, -0.1], [9.0, 9.0]], dtype=np.float32)
    table = as_table(["a", "b", "c"], logits, ["", "", "it is empty"], ["x", "y"], None)
    assert table.schema.field("x").type == pa.float32()
    rows = table.to_pylist()
    assert rows[0] == {"image_id": "a", "x": 0.5, "y": 1.0, "labels": ["x", "y"], "cause": None}
    assert rows[1]["x"] == np.float32(np.exp(-40.0))
    assert rows[1]["labels"] == []
    assert rows[2] == {"image_id": "c", "x": None, "y": None, "labels": [], "cause": "it is empty"}


def test_thresholds_are_compared_before_probabilities_are_rounded():
    logit = np.float32(17.5)  # its sigmoid is 1 in float32
    threshold = 1 / (1 + np.exp(-17.4))
    table = as_table(["a", "b"], np.array([[logit], [17.38]], dtype=np.float32), ["", ""], ["x"], [threshold])
    assert table.column("labels").to_pylist() == [["x"], []]
    assert table.column("x").to_pylist() == [1.0, 1.0]


def test_first_look_shows_the_likeliest_classes_over_row_groups(tmp_path):
    rows = as_table(["a", "b", "c"], np.array([[0, 1, -1], [3, 0, 1], [0, 0, 5.0]]), [""] * 3, ["x", "y", "z"], None)
    pq.write_table(rows, tmp_path / "p.parquet", row_group_size=1)
    assert first_look(tmp_path / "p.parquet", ["x", "y", "z"], top=2, photos=2) == (
        "a: y 0.731, x 0.500\nb: x 0.953, z 0.731"
    )
    assert len(first_look(tmp_path / "p.parquet", ["x", "y", "z"], top=9).splitlines()) == 3
