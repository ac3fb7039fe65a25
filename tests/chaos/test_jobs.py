"""What clients ask for follows from seed, client and number, and every answer is known beforehand."""

from chaos.jobs import Submission, submission
from koubou_common.messages.limits import INLINE_BYTES
from koubou_simulator.ollama.markers import Shape, read_marks

MANY = [submission(1, "client_1", number) for number in range(600)]


def file_bytes(planned: Submission) -> int:
    return sum(len(data) for job in planned.jobs for _, data in job.files)


def test_a_submission_is_the_same_after_a_restart() -> None:
    assert submission(7, "client_2", 3) == submission(7, "client_2", 3)
    assert submission(7, "client_2", 3) != submission(8, "client_2", 3)
    assert submission(7, "client_2", 3).jobs[0].answer != submission(7, "client_1", 3).jobs[0].answer


def test_keys_and_answers_are_never_the_same_twice() -> None:
    answers = [job.answer for planned in MANY for job in planned.jobs]
    assert len(set(answers)) == len(answers)
    assert len({planned.key for planned in MANY}) == len(MANY)


def test_the_simulated_model_is_told_to_say_the_answer() -> None:
    for planned in MANY[:50]:
        for job in planned.jobs:
            marks = read_marks(job.prompt)
            assert (marks.shape, marks.raw) == (Shape.RAW, job.answer)


def test_some_are_batches_some_are_large_and_some_are_cancelled() -> None:
    assert 15 <= sum(len(planned.jobs) > 1 for planned in MANY) <= 60
    assert all(file_bytes(planned) > INLINE_BYTES for planned in MANY if len(planned.jobs) > 1)
    assert any(len(planned.jobs) == 1 and file_bytes(planned) > INLINE_BYTES for planned in MANY)
    assert 10 <= sum(planned.cancel_after_s is not None for planned in MANY) <= 60
    assert 10 <= sum(planned.dies_before_noting for planned in MANY) <= 50


def test_a_draft_names_its_files_by_their_bytes() -> None:
    planned = next(planned for planned in MANY if len(planned.jobs) > 1)
    draft = planned.jobs[0].draft()
    (file,) = draft.spec.files
    assert draft.bodies[file.body.sha256] == planned.jobs[0].files[0][1]
    assert draft.bodies[draft.spec.prompt.sha256] == planned.jobs[0].prompt.encode()
