"""What is stored for nobody's task: counted by who sent it, until a task needs it or a day has passed."""

from koubou_broker.uploads import AGE_S, ROW_BYTES, Uploads

A, B, C = (letter.encode() * 32 for letter in "abc")


def test_what_a_task_needs_is_not_counted_any_more() -> None:
    uploads = Uploads(1_000_000)
    uploads.brought("mika", A, 10_000, 0.0)
    uploads.brought("mika", B, 20_000, 0.0)
    uploads.brought("mika", B, 20_000, 0.0)
    assert uploads.held_bytes("mika", 0.0) == 30_000
    uploads.needed("mika", (A, C))
    assert uploads.held_bytes("mika", 0.0) == 20_000
    uploads.needed("mika", (B,))
    assert uploads._of == {}


def test_one_s_uploads_are_not_another_s() -> None:
    uploads = Uploads(15_000)
    uploads.brought("mika", A, 10_000, 0.0)
    uploads.needed("rin", (A,))
    assert uploads.refusal("rin", 15_000, 0.0) == ""
    assert "unreferenced_bytes_per_client is 15,000" in uploads.refusal("mika", 5_001, 0.0)
    assert uploads.refusal("mika", 5_000, 0.0) == ""


def test_the_smallest_counts_as_its_row() -> None:
    uploads = Uploads(10 * ROW_BYTES)
    for number in range(10):
        uploads.brought("mika", bytes([number]) * 32, 1, 0.0)
    assert uploads.refusal("mika", 1, 0.0)


def test_it_ages() -> None:
    uploads = Uploads(10_000)
    uploads.brought("mika", A, 10_000, 0.0)
    uploads.brought("mika", B, 5_000, 10.0)
    assert uploads.refusal("mika", 1, AGE_S - 1.0)
    assert uploads.held_bytes("mika", AGE_S + 1.0) == 5_000
    assert uploads.held_bytes("mika", AGE_S + 11.0) == 0
