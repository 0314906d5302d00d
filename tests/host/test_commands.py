"""How commands beside launch.py end."""

import pytest

from threestudio.utils.commands import exit_code_of
from threestudio.utils.errors import MissingFileError, UserError


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_work_that_ends_is_zero(capsys):
    done = []
    assert exit_code_of(lambda: done.append(1)) == 0
    assert done == [1] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [UserError("--steps: expected at least 1,\n  got 0"), MissingFileError("no such file"), OSError(28, "disk full")],
)
def test_what_a_user_can_mend_is_one_line(error, capsys):
    assert exit_code_of(raising(error)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert " ".join(str(error).split()) in line


def test_a_stop_by_hand_is_one_line(capsys):
    assert exit_code_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Stopped by hand.\n"


def test_a_fault_of_ours_shows_where_it_comes_from():
    with pytest.raises(ValueError, match="shapes differ"):
        exit_code_of(raising(ValueError("shapes differ")))
