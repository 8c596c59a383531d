"""Generate the parts of the documents that the code already says, so that neither drifts from the other.

A block of a document stands between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. ``make docs`` writes all
of them again; ``--check``, and a unit test, name the documents in which one is out of date.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "liver_slurm"
BLOCK = re.compile(r"<!-- generated: (?P<name>\w+) -->\n(?P<text>.*?)<!-- end of (?P=name) -->", re.DOTALL)


def documents() -> list[Path]:
    """Return every document with prose of ours: the README and the pages in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str) -> str:
    """Return a document's text with each of its generated blocks made again from the code.

    Raises:
        KeyError: a block has a name that no generator has.
    """

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- generated: {name} -->\n{BLOCKS[name]()}\n<!-- end of {name} -->"

    return BLOCK.sub(block, text)


def layers() -> str:
    """Render the layers of the import-linter contract, top to bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = [" · ".join(name.strip() for name in re.split(r"[|:]", layer)) for layer in found]
    return "\n".join(["```text", *(f"  │  {row}" for row in rows), "  ▼", "```"])


def contracts() -> str:
    """Render the table of import-linter's other contracts, which say in their names what holds."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = sorted(contract["name"] for contract in found if not contract["name"].startswith("LS-A0"))
    rows = [
        f"| {number} | {told[:1].upper()}{told[1:]}. |" for number, _, told in (name.partition(": ") for name in names)
    ]
    return "\n".join(["| contract | says |", "|---|---|", *rows])


def packages() -> list[str]:
    """Return every package of the product as a dotted name below ``liver_slurm``, plugins included."""
    plugins = ROOT / "plugins"  # liver_slurm/plugins is a link to it, which glob does not follow
    found = [*PACKAGE.rglob("__init__.py"), *plugins.rglob("__init__.py")]
    names = {path.parent.relative_to(PACKAGE if PACKAGE in path.parents else ROOT) for path in found}
    return sorted(".".join(name.parts) for name in names if name.parts and "__pycache__" not in name.parts)


def rooms() -> str:
    """Render the table of packages, each with the first line of its docstring."""
    rows = ["| package | what is in it |", "|---|---|"]
    for name in packages():
        folder = "/".join(name.split("."))
        home = ROOT / folder if folder.startswith("plugins") else PACKAGE / folder
        line = (ast.get_docstring(ast.parse((home / "__init__.py").read_text())) or "").partition("\n\n")[0]
        shown = line.replace("\n", " ").replace("``", "`")
        link = f"../{folder}" if folder.startswith("plugins") else f"../liver_slurm/{folder}"
        rows.append(f"| [`{folder}/`]({link}) | {shown} |")
    return "\n".join(rows)


def sections() -> str:
    """Render the table of a job file's sections and keys, from the reference that the schema makes."""
    rows = ["| section | what it says | keys |", "|---|---|---|"]
    parts = re.split(r"^(\[\[?[\w.]+\]\]?)$", (ROOT / "configs" / "reference.toml").read_text(), flags=re.MULTILINE)
    for before, header, keys in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
        told = [line.removeprefix("# ") for line in before.rsplit("\n\n", 1)[-1].splitlines() if line.startswith("# ")]
        names = re.findall(r"^# (\w+) =", keys, flags=re.MULTILINE)
        rows.append(f"| `{header}` | {' '.join(told)} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(rows)


def messages() -> str:
    """Render a table of each direction's messages, with the first sentence of each docstring."""
    files = ("messages.py", "parked.py", "client_messages.py")
    tree, *others = (ast.parse((PACKAGE / "protocol" / name).read_text()) for name in files)
    nodes = [node for one in (tree, *others) for node in one.body]
    told = {node.name: first_sentence(node) for node in nodes if isinstance(node, ast.ClassDef)}
    parts = []
    for union, title in (
        ("FromWorker", "worker to coordinator"),
        ("ToWorker", "coordinator to worker"),
        ("FromClient", "client to coordinator, answered by `Reply`"),
    ):
        rows = [f"| {title} | says |", "|---|---|", *(f"| `{name}` | {told[name]} |" for name in _members(tree, union))]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def records() -> str:
    """Render the table of the journal's records."""
    tree = ast.parse((PACKAGE / "coordinator" / "core" / "records.py").read_text())
    told = {node.name: first_sentence(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    rows = [f"| `{name}` | {told[name]} |" for name in _members(tree, "Record")]
    return "\n".join(["| record | says |", "|---|---|", *rows])


def events() -> str:
    """Render the table of events, with the keys that each has beside ``time``, ``event`` and ``generation``."""
    import typing

    import msgspec

    from liver_slurm.rundir import events as known

    home = Path(known.__file__).parent
    trees = [ast.parse(path.read_text()) for path in sorted(home.glob("*events.py"))]
    told = {node.name: first_sentence(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    rows = ["| event | says | keys |", "|---|---|---|"]
    for kind in typing.get_args(known.Event):
        keys = [field.encode_name for field in msgspec.structs.fields(kind)]
        shown = ", ".join(f"`{key}`" for key in keys if key not in ("time", "generation"))
        rows.append(f"| `{known.event_name(kind)}` | {told[kind.__name__]} | {shown} |")
    return "\n".join(rows)


def steps() -> str:
    """Render the table of the keys of a line of ``metrics.jsonl``."""
    tree = ast.parse((PACKAGE / "rundir" / "metrics.py").read_text())
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "StepMetrics")
    rows = ["| key | type | what it is |", "|---|---|---|"]
    for field, told in zip(kind.body, [*kind.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            text = told.value.value if isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant) else ""
            shown = " ".join(str(text).split()).replace("``", "`")
            rows.append(
                f"| `{ast.unparse(field.target)}` | {ast.unparse(field.annotation).replace('|', 'or')} | {shown} |"
            )
    return "\n".join(rows)


def commands() -> str:
    """Render every command with its arguments, as ``--help`` has them."""
    from liver_slurm.cli.main import full_parser

    return "\n\n".join(_command(name, parser, "##") for name, parser in _subcommands(full_parser()))


def _subcommands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [pair for action in found for pair in action.choices.items()]


def _command(name: str, parser: argparse.ArgumentParser, level: str) -> str:
    text = [f"{level} {parser.prog.removeprefix('liver-slurm ')}", (parser.description or "").strip()]
    rows = [
        f"| {_shown(action)} | {_cell(_help(action, parser))} |"
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]
    if rows:
        text.append("\n".join(["| argument | what it does |", "|---|---|", *rows]))
    if parser.epilog:
        text.append(f"```text\n{parser.epilog.strip()}\n```")
    text += [_command(inner, one, f"{level}#") for inner, one in _subcommands(parser)]
    return "\n\n".join(part for part in text if part)


def _shown(action: argparse.Action) -> str:
    metavar = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(
        f"`{name}`" if action.nargs == 0 else f"`{_cell(f'{name} {value}')}`" for name in action.option_strings
    )


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}


def keys() -> str:
    """Render every key of a job file, section by section, with its meaning, values and default."""
    from liver_slurm.config.keys import sections

    found = []
    for section in sections(documented=True):
        header = f"[[{section.name}]]" if section.repeated else f"[{section.name}]"
        rows = ["| key | meaning | allowed | default |", "|---|---|---|---|"]
        for key in section.keys:
            default = "needed" if key.required else "" if key.default is None else f"`{json.dumps(key.default)}`"
            name = key.name.rpartition(".")[2]
            rows.append(f"| `{name}` | {_cell(key.text)} | {_cell(key.allowed)} | {_cell(default)} |")
        # Brackets in a heading would be taken for a link.
        found.append("\n\n".join([f"## `{header}`", " ".join(section.text.split()), "\n".join(rows)]))
    return "\n\n".join(found)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def figures() -> str:
    """Render the table of the figures that monitoring may ask for."""
    from liver_slurm.observability.figures import families

    rows = [f"| `{family.exported}` | {family.kind} | {family.text} |" for family in families()]
    return "\n".join(["| figure | kind | what it is |", "|---|---|---|", *rows])


def phases() -> str:
    """Render two state diagrams from the table of transitions: of a run, and of a reconfiguration."""
    from liver_slurm.coordinator.core.state import RunPhase
    from liver_slurm.coordinator.core.transition import TRANSITIONS
    from liver_slurm.coordinator.core.worlds import ReconfigurationPhase

    return "\n\n".join(
        _diagram({move: why for move, why in TRANSITIONS.items() if isinstance(move[0], kind)}, next(iter(kind)))
        for kind in (RunPhase, ReconfigurationPhase)
    )


def _diagram(moves: Mapping[tuple[Any, Any], str], first: Any) -> str:
    """Render one mermaid state diagram; what every phase that can be left goes to is drawn once, around them all."""
    left = dict.fromkeys(before for before, _ in moves)
    common = {after for _, after in moves if after not in left and all((before, after) in moves for before in left)}
    moves = {move: why.replace(":", ",") for move, why in moves.items()}  # a second colon would end mermaid's label
    lines = [
        f"{_node(before)} --> {_node(after)}: {why}" for (before, after), why in moves.items() if after not in common
    ]
    inside = [f"[*] --> {_node(first)}", *(line for line in lines if not _leaves(line, left))]
    outside = [line for line in lines if _leaves(line, left)]
    outside += [
        f"any --> {_node(after)}: {moves[first, after]}" for after in dict.fromkeys(a for _, a in moves if a in common)
    ]
    if outside:
        inside = ['state "the run goes on" as any {', *(f"    {line}" for line in inside), "}"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *(f"    {line}" for line in [*inside, *outside]), "```"])


def _leaves(line: str, left: Iterable[Any]) -> bool:
    return line.split(" --> ")[1].partition(":")[0] not in {_node(phase) for phase in left}


def _node(phase: Any) -> str:
    return str(phase.name)


def parts() -> str:
    """Render the table of the state's parts: what is in each, and the one module that writes it."""
    from liver_slurm.coordinator.core.state import PARTS

    rows = ["| part | what is in it | written by |", "|---|---|---|"]
    for kind, part in PARTS.items():
        told = (kind.__doc__ or "").partition("\n\n")[0].replace("``", "`")
        rows.append(f"| `{part.field}` | {' '.join(told.split())} | `coordinator/core/{part.owner}.py` |")
    return "\n".join(rows)


def signals() -> str:
    """Render the table of signals inside the core, and who reacts to each, in order."""
    from liver_slurm.coordinator.core.step import REACTIONS

    tree = ast.parse((PACKAGE / "coordinator" / "core" / "signals.py").read_text())
    told = {node.name: first_sentence(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    rows = ["| signal | says | who reacts, in order |", "|---|---|---|"]
    for signal, handlers in REACTIONS.items():
        names = [f"`{handler.__module__.rpartition('.')[2]}.{handler.__name__}`" for handler in handlers]
        rows.append(f"| `{signal.__name__}` | {told[signal.__name__]} | {', '.join(names)} |")
    return "\n".join(rows)


def rules() -> str:
    """Render what the core's own check asks of the state after every step."""
    tree = ast.parse((PACKAGE / "coordinator" / "core" / "invariants.py").read_text())
    check = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "broken_invariants")
    table = next(node.value for node in check.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict))
    return "\n".join(f"- {key.value}" for key in table.keys if isinstance(key, ast.Constant))


def citations() -> str:
    """Render which test files show each invariant."""
    found = cited()
    rows = []
    for number in invariants():
        files = sorted({path for path, _ in found.get(number, ())})
        rows.append(f"| {number} | {', '.join(f'[{path.stem}](../{path})' for path in files)} |")
    return "\n".join(["| invariant | shown by |", "|---|---|", *rows])


def invariants() -> list[str]:
    """Return the numbers of all invariants of docs/protocol.md, in its order."""
    return re.findall(r"^- \*\*(LS-\d+)\*\*", (ROOT / "docs" / "protocol.md").read_text(), flags=re.MULTILINE)


def cited() -> dict[str, list[tuple[Path, str]]]:
    """Return, for each number that a test cites, the file and the name of each such test."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if "LS-" not in text:
            continue
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            tests = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            machine = isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id == "RuleBasedStateMachine" for base in node.bases
            )
            if tests or machine:
                for number in re.findall(r"\bLS-\d+\b", "\n".join(lines[node.lineno - 1 : node.end_lineno])):
                    found.setdefault(number, []).append((path.relative_to(ROOT), node.name))
    return found


def first_sentence(node: ast.ClassDef) -> str:
    """Return the first sentence of a class's docstring, in Markdown."""
    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    text = re.split(r"(?<=[.!]) (?=[A-Z])", text)[0]
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`").replace("|", "\\|")


def _members(tree: ast.Module, union: str) -> list[str]:
    """Return the names in ``union = Union[…]``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == union:
            assert isinstance(node.value, ast.Subscript)
            assert isinstance(node.value.slice, ast.Tuple)
            return [name.id for name in node.value.slice.elts if isinstance(name, ast.Name)]
    raise KeyError(f"there is no union {union}")


BLOCKS: dict[str, Callable[[], str]] = {
    "layers": layers,
    "contracts": contracts,
    "rooms": rooms,
    "sections": sections,
    "messages": messages,
    "records": records,
    "events": events,
    "steps": steps,
    "commands": commands,
    "keys": keys,
    "figures": figures,
    "phases": phases,
    "parts": parts,
    "signals": signals,
    "rules": rules,
    "citations": citations,
}


def main(arguments: list[str]) -> int:
    """Write all generated blocks, or with ``--check`` name the documents in which one is out of date."""
    stale = 0
    for path in documents():
        text = path.read_text()
        fresh = render(text)
        if fresh != text:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'out of date; run make docs' if '--check' in arguments else 'written'}")
            if "--check" not in arguments:
                path.write_text(fresh)
    return int("--check" in arguments and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
