# SPDX-License-Identifier: Apache-2.0
import json
import logging

from hyperd.log import JsonFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "hyperd.x", "levelname": "INFO", "msg": "running", **fields})


def test_a_line_is_a_message_and_its_fields() -> None:
    line = TextFormatter().format(record(sandbox="web", start_ms=91))
    assert line.endswith("INFO hyperd.x running sandbox=web start_ms=91")


def test_no_field_can_forge_a_line() -> None:
    line = TextFormatter().format(
        record(error="x\nERROR forged", other="\r\x1b[2Jz", empty="", spaced="a b=c")
    )
    assert line.isprintable()
    assert 'empty=""' in line
    assert 'spaced="a b=c"' in line


def test_json_has_the_same_and_a_bug_s_traceback() -> None:
    error = ZeroDivisionError("no")
    bug = record(exc_info=(type(error), error, None), bug_id="ab")
    entry = json.loads(JsonFormatter().format(bug))
    assert entry["bug_id"] == "ab"
    assert "ZeroDivisionError" in entry["traceback"]
    assert "ZeroDivisionError" in TextFormatter().format(bug)
