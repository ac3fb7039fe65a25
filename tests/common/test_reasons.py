"""The reasons: one word and one text each; which of them waiting does not change."""

import re

from koubou_common.reasons import Reason
from support.house import ROOT


def test_every_reason_has_a_text_of_its_own_that_follows_a_workers_name() -> None:
    texts = [reason.text for reason in Reason]
    assert len(set(texts)) == len(texts)
    assert all(text and not text.endswith(".") and text[0].islower() for text in texts)


def test_a_worker_with_room_and_another_plan_is_told_from_one_without_room() -> None:
    assert {reason for reason in Reason if reason.is_plan} == {
        Reason.AVOIDED,
        Reason.WAITS_FOR_PREFERRED,
        Reason.KEPT_FOR_LOADED_MODEL,
        Reason.FASTER_ELSEWHERE,
    }


def test_what_only_another_set_up_changes_is_lasting_and_nothing_else() -> None:
    assert {reason for reason in Reason if reason.is_lasting} == {
        Reason.OTHER_WORKER,
        Reason.LABEL_MISSING,
        Reason.CAPABILITY_MISSING,
        Reason.MODEL_NOT_LISTED,
        Reason.DIGEST_DIFFERS,
        Reason.WINDOW_TOO_SMALL,
        Reason.EXCLUDED,
    }


def test_the_protocol_names_every_word_and_no_other() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    told = page.partition("The reasons:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {reason.value for reason in Reason} - {"other"}
