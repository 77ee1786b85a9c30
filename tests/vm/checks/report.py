# SPDX-License-Identifier: GPL-2.0-only
"""Counts checks, and prints one line for each group of them."""

import sys


def shorten(value, limit=600):
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def difference(got, expected, where=""):
    """Where two values, which may be nested, are not the same: ["packet.ttl: expected 64, got 63"]"""
    if isinstance(got, dict) and isinstance(expected, dict):
        return [line for name in {**expected, **got}
                for line in difference(got.get(name, "nothing"), expected.get(name, "nothing"), f"{where}.{name}")]
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        return [line for i, pair in enumerate(zip(got, expected)) for line in difference(*pair, f"{where}[{i}]")]
    return [] if got == expected else [f"{where or 'value'}: expected {shorten(expected)}, got {shorten(got)}"]


class Group:
    """What was checked together. Every check is carried out; none stops the others."""

    def __init__(self, kernel, name):
        self.kernel, self.name = kernel, name
        self.passed, self.failures = 0, []

    def true(self, holds, what, got=None):
        if holds:
            self.passed += 1
        else:
            self.failures.append(what + ("" if got is None else f"\n      got {shorten(got)}"))
        return bool(holds)

    def equal(self, got, expected, what):
        return self.true(got == expected, f"{what}: {'; '.join(difference(got, expected)[:5])}")

    def fields(self, got, expected, what):
        """Every field of `expected`, which may be nested, has its value in `got`. A function is asked instead."""
        for name, value in expected.items():
            where = f"{what}.{name}"
            if not isinstance(got, dict) or name not in got:
                self.true(False, f"{where}: missing", got)
            elif isinstance(value, dict):
                self.fields(got[name], value, where)
            elif callable(value):
                self.true(value(got[name]), f"{where}: not as expected", got[name])
            else:
                self.equal(got[name], value, where)


class Report:
    def __init__(self):
        self.passed = self.failed = 0

    def run(self, kernel, name, function, *arguments):
        """Calls function(group, *arguments). What the guest left may be anything: no exception ends the run."""
        group = Group(kernel, name)
        try:
            function(group, *arguments)
        except Exception as error:  # pylint: disable=broad-except
            trace, position = error.__traceback__, ""
            while trace:
                position = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
                trace = trace.tb_next
            group.failures.append(f"could not be checked: {type(error).__name__}: {error} ({position})")
        if group.passed == 0 and not group.failures:
            group.failures.append("nothing was checked")
        self.passed += group.passed
        self.failed += len(group.failures)
        total = group.passed + len(group.failures)
        print(f"{'FAILED' if group.failures else 'ok'} {kernel}: {name} ({total} checks)")
        for failure in group.failures[:20]:
            print(f"    {failure}")
        if len(group.failures) > 20:
            print(f"    and {len(group.failures) - 20} more")
        sys.stdout.flush()

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0
