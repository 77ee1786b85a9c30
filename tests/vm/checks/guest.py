# SPDX-License-Identifier: GPL-2.0-only
"""What a guest left in its directory."""

import json
import re
from datetime import datetime, timezone
from pathlib import Path


def seconds(time):
    """RFC 3339 with nanoseconds, in UTC -> seconds since 1970."""
    whole, fraction = time.rstrip("Z").split(".")
    return datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp() + float("0." + fraction)


def packet_key(family, proto, src, sport, dst, dport):
    """Tells one packet of a scenario from the others."""
    return (family, proto, src, sport, dst, dport)


class Run:
    """One tsdroptrace in one scenario."""

    def __init__(self, directory, name="run", json_lines=None):
        self.name = f"{directory.name}/{name}"
        self.out = self._read(directory / f"{name}.out")
        self.err = self._read(directory / f"{name}.err")
        exit_code = self._read(directory / f"{name}.exit").strip()
        self.exit = int(exit_code) if exit_code else None
        text = json_lines if json_lines is not None else self._read(directory / f"{name}.json")
        self.lines = [json.loads(line) for line in text.splitlines()]

    @staticmethod
    def _read(path):
        return path.read_text(errors="replace") if path.exists() else ""

    def of_type(self, kind):
        return [line for line in self.lines if line["type"] == kind]

    @property
    def drops(self):
        return self.of_type("drop")

    @property
    def final(self):
        return self.lines[-1]

    def drops_to_port(self, port, family=None):
        return [d for d in self.drops if d["packet"]["dport"] == port and family in (None, d["packet"]["family"])]


def key_of(drop):
    p = drop["packet"]
    return packet_key(p["family"], p["proto"], p["src"], p["sport"], p["dst"], p["dport"])


class Guest:
    """Everything of one boot."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.kernel = self.text("kernel").strip()
        # Linux 5.10, where tsdroptrace uses kprobes: no reasons, no functions at hooks, no queues.
        self.old = self.kernel.startswith("5.10.")
        # A kernel that lets no fentry be attached: there it is kprobes, too.
        self.without_fentry = "forbid=fentry" in self.text("cmdline")
        self.host = self.text("host").strip()
        self.netns = int(re.search(r"\d+", self.text("netns")).group())
        # The kernel's own list of drop reasons: { 12, "NETFILTER_DROP" }
        self.reasons = {name: int(code) for code, name in
                        re.findall(r'\{ (\d+), "([A-Z0-9_]+)" \}', self.text("kfree_skb.format"))}
        self.scenarios = {}
        for line in self.text("scenarios").splitlines():
            name, status, begin, end = line.split()
            self.scenarios[name] = (int(status), float(end) - float(begin))

    def may_be_unseen(self, drop):
        """A kernel runs no kprobe while another is at work on that CPU. What a softirq drops just then has been seen by none
        of the programs but that on kfree_skb, which says so of each packet. (Neither is 5.10's hook known then.) A counter
        of a legacy table that has moved for a packet of which such a probe was skipped shows at the next one's."""
        said = drop["drop"]["unknown"] or ""
        return (self.old or self.without_fentry) and drop["rule"] is None and (
            "probe the kernel skipped" in said or "several dropping rules of iptables-legacy counted a packet at once" in said)

    def may_be_doubted(self, drop):
        """7.2 preempts what is within the kernel. For a while after a task has been moved between CPUs in the midst of it,
        nothing is said of a packet that another one has interrupted there (legacy tables)."""
        return self.kernel.startswith("7.") and drop["rule"] is None and (
            "another packet interrupted this one on its CPU" in (drop["drop"]["unknown"] or ""))

    def may_be_suspects(self, drop):
        """5.10 frees all packets in one place: until the matches of iptables-nft are traced, which takes a second or two, a
        policy's drop may be one of theirs."""
        return self.old and drop["rule"] is None and "a match of iptables-nft that may drop by itself" in (
            drop["drop"]["unknown"] or "")

    def text(self, path):
        return (self.directory / path).read_text(errors="replace")

    def marks(self, scenario):
        return {name: float(time) for name, time in map(str.split, self.text(f"{scenario}/marks").splitlines())}

    def run(self, scenario, name="run", json_lines=None):
        return Run(self.directory / scenario, name, json_lines)


def version(kernel):
    """Of "6.12.118+deb13-cloud-amd64", and of the first version that a string has: (6, 12); () where it has none."""
    return tuple(int(number) for number in re.findall(r"\d+", kernel)[:2])


def reasons_file(kernel):
    """The kernel's reasons as its own type information tells them, those of its modules and queues too; 5.10 has none."""
    return Path(__file__).resolve().parents[2] / f"fixtures/reasons/{'.'.join(map(str, version(kernel)))}.txt"


FITS = set()  # lines that fit the schema, but for their digits


def schema_error(line, validator):
    """What of the line does not fit the schema, if anything. Lines that differ in digits only are looked at once: that takes
    longer than all other checks."""
    shape = re.sub("[0-9]", "0", json.dumps(line))
    if shape in FITS:
        return None
    error = next(validator.iter_errors(line), None)
    if error is None:
        FITS.add(shape)
    return error


def check_lines(group, run, validator):
    """What holds for the JSON lines of every run that was not cut short."""
    for number, line in enumerate(run.lines, 1):
        error = schema_error(line, validator)
        group.true(error is None, f"{run.name}: line {number} does not fit the schema",
                   error and f"{error.message}: {line}")
    types = [line["type"] for line in run.lines]
    group.true(types[:1] == ["start"] and types.count("start") == 1, f"{run.name}: one start line, the first", types)
    finals = [line for line in run.of_type("summary") if line["final"]]
    group.true(len(finals) == 1 and run.final is finals[0], f"{run.name}: one final summary, the last line", types[-3:])


def check_terminal(group, run):
    """80 columns, but for commands and addresses, which are not broken in two; the summary at the end."""
    for line in run.out.splitlines():
        whole = re.match(r"(  fix     |          )\d  |  see     ", line)
        group.true(whole or len(line) <= 80, f"{run.name}: a line of more than 80 columns", line)
    group.true(re.search(r"^(\d+|nothing|nothing but noise was) (was )?dropped ", run.out, re.M),
               f"{run.name}: the summary is on the terminal", run.out[-300:])


def check_run(group, run, validator):
    """What holds for every run that nothing was to go wrong in."""
    check_lines(group, run, validator)
    check_terminal(group, run)
    group.equal(run.exit, 0, "exit code")
