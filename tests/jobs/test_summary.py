"""The job `summary`: its rows add up, and it writes nothing."""
from tests.runs import small_config
import vit_efficient
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs.summary import summary


def test_summary_adds_up_and_writes_nothing(tmp_path, capsys):
    config = small_config()
    rows = summary(config, tmp_path / "run")
    total = rows.pop("total")
    for key in "parameters", "trained", "macs":
        assert total[key] == sum(row[key] for row in rows.values())
    assert total["macs"] == sum(assemble(config).model.macs().values())
    text = capsys.readouterr().out
    assert f"{total['parameters']:,}" in text and "layers_0/blocks_0/attn/qkv/kernel" in text
    assert not (tmp_path / "run").exists()


def test_summary_needs_no_data_where_the_classes_are_given(tmp_path):
    rows = summary(vit_efficient.config("dvt:t2t_14"), tmp_path, num_classes=1000)
    assert list(rows) == ["less_less_token", "less_token", "normal_token", "total"]
    assert [row["parameters"] for row in rows.values()] == [        # the authors' code
        21_574_656, 23_156_110, 23_151_070, 67_881_836]
    assert rows["total"]["trained"] == 67_735_916
    headless = summary(vit_efficient.config("sret"), tmp_path, num_classes=0)
    assert headless["total"]["parameters"] == 4_988_024 - 257_000
