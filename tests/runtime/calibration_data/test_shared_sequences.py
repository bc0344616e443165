import torch

from hlwq_cli.runtime.calibration_data import overlap


def rows(count: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (count, length), generator=torch.Generator().manual_seed(seed))


def test_other_text_does_not_overlap() -> None:
    assert overlap(rows(64, 256, 0), rows(8, 512, 1)) == 0


def test_the_same_text_is_found_however_it_is_cut() -> None:
    text = rows(1, 8192, 0)[0]
    assert overlap(text.view(32, 256), text.view(32, 256)) == 1
    assert overlap(text[100:].unfold(0, 256, 256), text.view(16, 512)) > 0.9
    half = torch.cat([text[:4096], rows(1, 4096, 1)[0]])
    assert abs(overlap(text.view(16, 512), half.view(16, 512)) - 0.5) < 0.01


def test_texts_shorter_than_a_sequence_do_not_overlap() -> None:
    assert overlap(rows(4, 8, 0), rows(4, 8, 0)) == 0
