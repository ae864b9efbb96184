import logging

from pretrain.saturation import SaturationWatch, saturated_since


def rows(*dice):
    return [{"step": 10 * n, "pretext_dice": value} for n, value in enumerate(dice)]


def test_five_lines_in_a_row_count_and_the_first_of_them_is_named():
    assert saturated_since(rows(0.9, 0.96, 0.96, 0.96, 0.96)) is None
    found = saturated_since([{"step": 0}, *rows(0.99, 0.5, 0.96, 0.97, 0.98, 0.99, 1.0)])
    assert (found.step, round(found.dice, 3)) == (20, 0.98)
    assert saturated_since(rows(0.99, 0.99, 0.99, 0.99, 0.99, 0.5)) is None
    assert saturated_since([{"step": n, "volume_fusion/pretext_dice": 1.0} for n in range(5)]).step == 0
    assert saturated_since([]) is None


def test_the_log_says_it_once_with_what_to_change(caplog):
    watch = SaturationWatch()
    with caplog.at_level(logging.WARNING, "voxscale"):
        for row in rows(*[0.99] * 20):
            watch.hear(row)
    assert len(caplog.records) == 1
    assert "solved since step 0" in caplog.text
    assert "raise objective.volume_fusion.levels" in caplog.text
