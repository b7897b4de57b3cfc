"""The judge of bad batches, and what is written of them."""

import json
import math
import random
from pathlib import Path

import pytest

from cloc.config.schema import TrainConfig
from cloc.training.watch.anomalies import BAD_BATCHES, BadBatch, Judge, Verdict

NAN, INF = math.nan, math.inf


def judge(**settings) -> Judge:
    return Judge(TrainConfig(**settings))


def fed(judged: Judge, losses: list[float]) -> list[Verdict]:
    return [judged.judge(loss=loss, gradient_norm=1.0).verdict for loss in losses]


def flat(count: int, *, mean: float = 2.0, spread: float = 0.1, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(mean, spread) for _ in range(count)]


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF), (NAN, NAN)])
def test_what_is_not_finite_stops_or_is_skipped(loss: float, norm: float) -> None:
    stopped = judge().judge(loss=loss, gradient_norm=norm)
    assert stopped.verdict is Verdict.STOP
    assert stopped.reason.startswith("the norm of the gradient is" if math.isfinite(loss) else "the loss is")
    assert "train.on_nonfinite=skip" in stopped.advice
    assert judge(on_nonfinite="skip").judge(loss=loss, gradient_norm=norm).verdict is Verdict.SKIP


def test_a_spike_is_far_above_what_is_usual() -> None:
    for action in ("skip", "stop"):
        judged = judge(on_spike=action, spike_deviations=8.0)
        assert set(fed(judged, flat(64))) == {Verdict.APPLY}
        assert judged.judge(loss=2.5, gradient_norm=1.0).verdict is Verdict.APPLY  # five deviations
        found = judged.judge(loss=4.0, gradient_norm=1.0)
        assert found.verdict is Verdict(action)
        assert "the loss is 4, above the 3.01 that 8 deviations of the last 65 losses allow" in found.reason
    ignoring = judge()
    assert set(fed(ignoring, [*flat(64), 1000.0])) == {Verdict.APPLY}


def test_the_start_has_no_spikes_and_a_still_loss_does_not_make_them() -> None:
    assert set(fed(judge(on_spike="stop"), [*flat(31), 50.0])) == {Verdict.APPLY}
    assert fed(judge(on_spike="stop"), [*flat(32), 50.0])[-1] is Verdict.STOP
    still = judge(on_spike="stop", spike_deviations=8.0)
    assert set(fed(still, [2.0] * 64 + [2.1])) == {Verdict.APPLY}
    assert fed(still, [2.3])[-1] is Verdict.STOP


def test_a_falling_loss_has_no_spikes() -> None:
    falling = [8 * 0.98**step + noise for step, noise in enumerate(flat(400, mean=0.5, spread=0.05))]
    assert set(fed(judge(on_spike="stop"), falling)) == {Verdict.APPLY}


def test_skipped_losses_do_not_change_what_is_usual() -> None:
    judged = judge(on_spike="skip", on_nonfinite="skip")
    fed(judged, flat(64))
    before = judged.state_dict()["losses"]
    assert fed(judged, [100.0, NAN, 100.0]) == [Verdict.SKIP] * 3
    assert judged.state_dict()["losses"] == before
    assert judged.state_dict()["in_row"] == 3
    assert fed(judged, [2.0]) == [Verdict.APPLY]
    assert judged.state_dict()["in_row"] == 0


def test_too_many_in_a_row_stop() -> None:
    judged = judge(on_nonfinite="skip", max_skipped=3)
    assert fed(judged, [NAN, NAN, 1.0, NAN, NAN, NAN]) == [Verdict.SKIP] * 2 + [Verdict.APPLY] + [Verdict.SKIP] * 3
    last = judged.judge(loss=NAN, gradient_norm=1.0)
    assert last.verdict is Verdict.STOP
    assert last.reason == "the loss is nan, after 3 skipped batches in a row (train.max_skipped)"


def test_a_judge_that_goes_on_judges_as_the_one_that_did_not_stop() -> None:
    settings = {"on_spike": "skip", "on_nonfinite": "skip", "spike_deviations": 3.0, "max_skipped": 4}
    whole, losses = judge(**settings), flat(300, spread=0.4)
    for place in range(5, 300, 31):
        losses[place : place + 3] = [NAN, 9.0, INF]
    expected = fed(whole, losses)
    assert {Verdict.SKIP, Verdict.APPLY} <= set(expected)
    first = judge(**settings)
    found = fed(first, losses[:99])
    second = judge(**settings)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert found + fed(second, losses[99:]) == expected
    assert second.state_dict() == whole.state_dict()
    fresh = judge(**settings)
    fresh.load_state_dict({})
    assert fresh.state_dict() == judge(**settings).state_dict()


def bad(step: int, **changed) -> BadBatch:
    keys = [f"{number:06d}" for number in range(8)]
    given = {"verdict": Verdict.SKIP, "reason": "the loss is nan", "loss": NAN, "gradient_norm": 1.5, "keys": keys}
    return BadBatch(step, **{**given, **changed})


def test_a_bad_batch_names_its_samples_and_where_the_rest_stands(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert bad(7).message(out) == (
        f"step 7: the loss is nan; samples 000000, 000001, 000002 and 5 more ({out}/bad_batches.jsonl)"
    )
    assert "samples a, b (" in bad(7, keys=["a", "b"]).message(f"{out}/")
    bad(7).write(out)
    bad(9, verdict=Verdict.STOP, loss=3.25).write(out)
    lines = [json.loads(line) for line in (tmp_path / BAD_BATCHES).read_text().splitlines()]
    assert [line["step"] for line in lines] == [7, 9]
    assert lines[0]["keys"] == [f"{number:06d}" for number in range(8)]
    assert (lines[0]["loss"], lines[0]["gradient_norm"], lines[1]["loss"]) == ("nan", 1.5, 3.25)
    assert (lines[0]["verdict"], lines[1]["verdict"]) == ("skip", "stop")
    bad(8).write(out)  # the run went on from step 7's checkpoint: what it did at 9 is forgotten
    assert [json.loads(line)["step"] for line in (tmp_path / BAD_BATCHES).read_text().splitlines()] == [7, 8]
