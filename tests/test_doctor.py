"""What the doctor tells is what happened: frames really decoded, a broken part really reported."""

from __future__ import annotations

import io
import sys

import av
import pytest
import torch
from rich.console import Console

from tubelet import doctor


def test_every_part_is_told_and_this_machine_is_usable():
    checks = doctor.doctor()
    names = [check.name for check in checks]
    assert names[:9] == [
        "tubelet", "torch", "device", "precision", "decoder", "self-test", "torchcodec", "memory", "disk",
    ]  # fmt: skip
    assert doctor.usable(checks)
    told = {check.name: check.told for check in checks}
    assert "decoded frames 0, 7, 14 of 16 exactly" in told["self-test"]
    assert av.__version__ in told["decoder"]
    assert torch.__version__ in told["torch"]


def test_whatever_is_not_ok_names_its_cure():
    for check in doctor.doctor():
        if check.name == "precision":
            continue
        assert check.status == "ok" or check.cure, check


def test_numbered_frames_differ_and_are_read_back(tmp_path):
    file = tmp_path / "numbers.mp4"
    doctor.write_numbered(file)
    with av.open(str(file)) as container:
        numbers = [doctor.read_number(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert numbers == list(range(16))


def test_a_decoder_off_by_one_is_broken(monkeypatch):
    import tubelet.data.decode as decode

    right = decode.read
    monkeypatch.setattr(decode, "read", lambda file, frames: right(file, [f + 1 for f in frames]))
    check = doctor._self_test()
    assert check.status == "broken"
    assert "got 1, 8, 15" in check.told
    assert check.cure.startswith("pip install")


def test_a_decoder_that_is_gone_is_broken_and_exit_code_1(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    check = doctor._pyav()
    assert check.status == "broken"
    out = io.StringIO()
    assert doctor.print_checks([check], Console(file=out, width=100)) == 1
    assert "broken: decoder" in out.getvalue()


def test_printing_shows_cures_with_their_brackets():
    checks = [doctor.Check("extra", "note", "not installed", "pip install 'tubelet[search]'")]
    out = io.StringIO()
    assert doctor.print_checks(checks, Console(file=out, width=100)) == 0
    assert "pip install 'tubelet[search]'" in out.getvalue()
    assert "tubelet can work here" in out.getvalue()


@pytest.mark.parametrize(("fast", "chosen"), [(True, "takes bf16"), (False, "takes fp32")])
def test_precision_tells_what_auto_takes_and_doubts_a_surprise(monkeypatch, fast, chosen):
    monkeypatch.setattr(doctor, "has_fast_bf16", lambda device: fast)
    monkeypatch.setattr(doctor, "_seconds", lambda kind, device: 1.0 if kind == torch.bfloat16 else 0.5)
    check = doctor._bf16()
    assert chosen in check.told
    assert "0.5 times" in check.told
    assert check.status == ("note" if fast else "ok")
