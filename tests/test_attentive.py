"""The attentive probe: a grid is its heads alone, its rates are the papers', and a diverged head harms no other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import UserError
from tubelet.evaluate import attentive
from tubelet.evaluate.attentive import AttentiveResult, AttentiveSettings, Rates, attentive_scores
from tubelet.nn.heads import AttentiveClassifier

CLASSES, DIM, CROPS, TOKENS = 3, 24, 2, 5
SETTINGS = AttentiveSettings(lrs=(1e-2, 1e-6), wds=(0.1,), epochs=6, batch_size=12)


def clips(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [count, CROPS, TOKENS, DIM] with one informative token, labels, groups (unrelated to labels)."""
    rng = np.random.default_rng(seed)
    label, group = np.arange(count) % CLASSES, np.arange(count) // CLASSES % 8
    x = rng.normal(size=(count, CROPS, TOKENS, DIM)).astype(np.float32)
    x[:, :, 0, :CLASSES] += 6 * np.eye(CLASSES)[label][:, None]
    return x, label, np.array([f"g{g}" for g in group])


def run(
    settings: AttentiveSettings = SETTINGS, x: np.ndarray | None = None, test_label: np.ndarray | None = None
) -> AttentiveResult:
    """48 training clips, 15 test clips."""
    made, label, group = clips(63)
    x = made if x is None else x
    train, test = np.arange(48), np.arange(48, 63)
    return attentive_scores(
        lambda which: torch.from_numpy(x[which]),
        train,
        label[train],
        test,
        CLASSES,
        group[train],
        settings,
        test_label=test_label,
    )


def same_head(one: AttentiveClassifier, other: AttentiveClassifier, atol: float = 1e-6) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# -- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "depth"), [(None, 1), (0.05, 1), (None, 2)])
def test_training_equals_a_plain_loop(clip: float | None, depth: int) -> None:
    """Written out: AdamW with every parameter decayed, each crop a sample, mean loss, cosine, clipping, warm-up."""
    x, label, _ = clips(63)
    settings = AttentiveSettings(
        depth=depth,
        heads=4,
        lrs=(3e-3,),
        wds=(0.5,),
        wd_end=0.1,
        warmup=1,
        start_lr=1e-3,
        epochs=3,
        batch_size=20,
        clip=clip,
    )
    torch.manual_seed(0)
    head = AttentiveClassifier(DIM, 4, CLASSES, depth)
    optimizer = torch.optim.AdamW(head.parameters())
    for epoch in range(3):
        order = np.random.default_rng([0, epoch]).permutation(48)
        for number, chosen in enumerate(np.array_split(order, 3)):
            at = epoch + number / 3
            lr = 1e-3 + 2e-3 * at if at < 1 else 3e-3 * (1 + math.cos(math.pi * (at - 1) / 2)) / 2
            wd = 0.1 + 0.4 * (1 + math.cos(math.pi * at / 3)) / 2
            batch = torch.from_numpy(x[chosen].reshape(-1, TOKENS, DIM))
            truth = torch.from_numpy(np.repeat(label[chosen], CROPS))
            optimizer.zero_grad()
            F.cross_entropy(head(batch), truth).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(head.parameters(), clip)
            optimizer.param_groups[0].update(lr=lr, weight_decay=wd)
            optimizer.step()
    found = run(settings)
    same_head(found.head, head, atol=2e-5)
    with torch.no_grad():
        expected = torch.stack([head(torch.from_numpy(x[48:, c])).softmax(-1) for c in range(CROPS)]).mean(0)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)  # the softmax is averaged over crops


def test_heads_of_a_grid_train_as_if_alone() -> None:
    test_label = clips(63)[1][48:]
    grid = replace(SETTINGS, extra=(Rates(1e-3, 0.0),), best_on="test")
    together = run(grid, test_label=test_label)
    for rates, found in zip(grid.grid, together.heads, strict=True):
        alone = run(replace(grid, lrs=(rates.lr,), wds=(rates.wd,), extra=()), test_label=test_label)
        assert alone.heads[0].test == found.test
        if rates.lr == together.lr:
            same_head(alone.head, together.head, atol=0)
            np.testing.assert_array_equal(alone.scores, together.scores)


def test_what_fits_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    sizes: list[int] = []
    monkeypatch.setitem(attentive.ACTIVATIONS, "cpu", 3 * 2 * CROPS * TOKENS * DIM * 4)

    x, label, group = clips(63)

    def tokens(which: np.ndarray) -> Tensor:
        sizes.append(len(which))
        return torch.from_numpy(x[which])

    train, test = np.arange(48), np.arange(48, 63)
    parts = attentive_scores(
        tokens, train, label[train], test, CLASSES, group[train], SETTINGS, progress=True
    )
    assert max(sizes) == 3  # neither the table nor a batch of 10 is ever asked for at once
    same_head(parts.head, whole.head, atol=1e-4)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-4)


def test_a_deep_pooler_reads_fewer_clips_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attentive.ACTIVATIONS, "cpu", 2**16)
    one = torch.zeros(1, CROPS, TOKENS, DIM)
    sizes = [
        attentive._Heads(
            one, 2, [Rates(1e-3, 0.0)], AttentiveSettings(depth=depth, heads=4), 0, "cpu"
        ).at_once
        for depth in (1, 4)
    ]
    assert sizes[0] > 10 * sizes[1] >= 10


# -- the choice ---------------------------------------------------------------------------------------------


def test_the_head_is_chosen_across_groups() -> None:
    """Clips are read in this order: one for its shape, those to learn from, those held out, the test clips."""
    x, label, group = clips(63)
    seen: list[int] = []

    def tokens(which: np.ndarray) -> Tensor:
        seen.extend(which.tolist())
        return torch.from_numpy(x[which])

    train, test = np.arange(48), np.arange(48, 63)
    settings = replace(SETTINGS, epochs=1, refit=False)
    found = attentive_scores(tokens, train, label[train], test, CLASSES, group[train], settings)
    order = seen[1:49]
    assert sorted(order) == list(range(48)) and seen[49:] == test.tolist()
    cuts = [k for k in range(1, 48) if not set(group[order[:k]]) & set(group[order[k:]])]
    assert len(cuts) == 1 and 30 <= cuts[0] <= 42  # three quarters, in whole groups
    assert found.note == "" and all(h.validation is not None and h.test is None for h in found.heads)


def test_the_chosen_head_is_the_best_on_validation_and_is_trained_again() -> None:
    found = run()
    assert found.lr == 1e-2
    quality = {h.rates.lr: h.validation for h in found.heads}
    assert quality[1e-2] == max(v for v in quality.values() if v is not None)
    same_head(found.head, run(replace(SETTINGS, lrs=(1e-2,))).head, atol=0)  # on all training clips


def test_without_refit_the_validated_head_itself_is_used() -> None:
    once = run(replace(SETTINGS, refit=False))
    again = run(SETTINGS)
    assert once.heads == again.heads and once.lr == again.lr
    assert not np.array_equal(once.scores, again.scores)


def test_test_labels_choose_only_where_that_was_asked_for_and_the_note_says_so() -> None:
    truth = clips(63)[1][48:]
    assert np.array_equal(run(test_label=truth).scores, run(test_label=truth[::-1].copy()).scores)
    flattering = replace(SETTINGS, best_on="test")
    found = run(flattering, test_label=truth)
    assert found.note.startswith("CHOSEN ON TEST") and "optimistic" in found.note
    scores = [h.test for h in found.heads if h.test is not None]
    assert len(scores) == 2 and (found.scores.argmax(1) == truth).mean() == max(scores)
    wrong = run(flattering, test_label=(truth + 1) % CLASSES)  # other test labels: another head
    assert wrong.lr != found.lr
    with pytest.raises(UserError, match="give test_label"):
        run(flattering)


def test_too_few_clips_to_choose_take_the_middle_of_the_grid() -> None:
    x, label, _ = clips(63)
    settings = replace(SETTINGS, lrs=(1e-2, 3e-3, 1e-3), wds=(0.1,))
    found = attentive_scores(
        lambda c: torch.from_numpy(x[c]), np.arange(3), label[:3], np.arange(48, 63), CLASSES, None, settings
    )
    assert found.lr == 3e-3 and "too few training clips" in found.note
    assert all(h.validation is None and not h.diverged for h in found.heads)


def test_the_head_can_be_saved_and_loaded() -> None:
    found = run()
    copy = AttentiveClassifier(DIM, 8, CLASSES)  # 8: the largest common divisor of 16 heads and width 24
    copy.load_state_dict(found.head.state_dict())
    x = torch.from_numpy(clips(63)[0][48:])
    with torch.no_grad():
        said = torch.stack([copy(x[:, crop]).double().softmax(-1) for crop in range(CROPS)]).mean(0)
    np.testing.assert_allclose(said, found.scores, atol=1e-6)
    assert not any(p.requires_grad for p in found.head.parameters())


# -- divergence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refit", [True, False])
def test_a_diverged_head_is_marked_never_chosen_and_harms_no_other(refit: bool) -> None:
    healthy = replace(SETTINGS, refit=refit)
    found, alone = run(replace(healthy, lrs=(1e30, 1e-2, 1e-6))), run(healthy)
    assert [h.diverged for h in found.heads] == [True, False, False]
    assert found.heads[0].validation is None and found.heads[1:] == alone.heads
    np.testing.assert_array_equal(found.scores, alone.scores)
    assert np.isfinite(found.scores).all()


def test_a_head_that_breaks_at_its_last_step_is_seen() -> None:
    """One step of one epoch: the loss was finite, what the step left behind is not."""
    settings = replace(SETTINGS, epochs=1, batch_size=64, lrs=(1e38, 1e-2))
    assert [h.diverged for h in run(settings).heads] == [True, False]


@pytest.mark.parametrize("best_on", ["validation", "test"])
def test_if_all_heads_diverge_the_cure_is_named(best_on) -> None:
    settings = replace(SETTINGS, lrs=(1e30, 1e31), best_on=best_on)
    with pytest.raises(
        UserError, match=r"all 2 heads .* diverged .*lowest learning rate was 1e\+30.*lower lrs"
    ):
        run(settings, test_label=clips(63)[1][48:])


# -- settings -----------------------------------------------------------------------------------------------


def test_rates_warm_up_and_fall() -> None:
    rates = Rates(lr=1e-3, wd=0.4, warmup=5, start_lr=2e-4)
    assert rates.at(0, 20) == pytest.approx((2e-4, 0.4))
    assert rates.at(2.5, 20) == pytest.approx((6e-4, 0.4))
    assert rates.at(5, 20)[0] == pytest.approx(1e-3)
    assert rates.at(12.5, 20) == pytest.approx((5e-4, 0.4))
    assert rates.at(20, 20) == pytest.approx((0.0, 0.4))
    falling = Rates(lr=1e-3, wd=0.01, wd_end=1e-6)
    assert falling.at(0, 20) == pytest.approx((1e-3, 0.01))
    assert falling.at(20, 20) == pytest.approx((0.0, 1e-6))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"depth": 0}, "depth=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lrs": ()}, "no head"),
        ({"lrs": (0.0,)}, "must be positive"),
        ({"lrs": (math.nan,)}, "must be positive"),
        ({"wds": (-0.1,)}, "not negative"),
        ({"warmup": 20}, "less than the 20 epochs"),
        ({"validation": 0.7}, "up to 0.5"),
        ({"clip": 0.0}, "clip=0"),
        ({"best_on": "tset"}, 'did you mean "test"'),
    ],
)
def test_settings_that_make_no_sense_are_refused(knobs, words) -> None:
    with pytest.raises(UserError, match=words):
        AttentiveSettings(**knobs)
