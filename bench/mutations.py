"""Small changes to a source file, each of which a test should notice.

A change replaces one expression or statement: a comparison is negated (of counts and bounds also moved by one), ``and``
and ``or`` are swapped, a ``not`` is dropped, a number or a truth value is another one, a statement is left out, a value
is not returned. Not changed are texts, annotations, docstrings and what is only counted for people (metrics): a time is
compared in the other direction, but not with ``<=`` in place of ``<``, for two measured times are never equal.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
SILENT = ("count", "describe", "debug", "info")  # calls that tell people something


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change: bytes ``start`` to ``end`` of ``file`` become ``new``. ``where`` names the function around it."""

    file: str
    where: str
    start: int
    end: int
    old: str
    new: str
    line: int

    @property
    def key(self) -> str:
        """A name that stays the same while the code around it changes."""
        return f"{self.file} {self.where}: {' '.join(self.old.split())} -> {self.new}"

    def applied(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + self.new.encode() + source[self.end :]


class _Finder:
    def __init__(self, file: str, source: bytes) -> None:
        self._file = file
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def _change(self, node: ast.expr | ast.stmt, new: str, where: str) -> Mutation:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        return Mutation(self._file, where, start, end, self._source[start:end].decode(), new, node.lineno)

    def walk(self, node: ast.AST, where: str) -> Iterator[Mutation]:
        """All changes within ``node``."""
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            where = node.name if where == "<module>" else f"{where}.{node.name}"
            for part in node.body:
                yield from self.walk(part, where)
            return
        if isinstance(node, ast.Import | ast.ImportFrom | ast.AnnAssign | ast.JoinedStr | ast.Assert) or _is_silent(
            node
        ):
            if isinstance(node, ast.AnnAssign) and node.value is not None and where != "<module>":
                yield from self.walk(node.value, where)
            return
        if isinstance(node, ast.stmt):
            yield from self._of_statement(node, where)
        elif isinstance(node, ast.expr):
            for new in _variants(node):
                yield self._change(
                    node, f"({ast.unparse(new)})" if not isinstance(new, ast.Constant) else repr(new.value), where
                )
        for child in ast.iter_child_nodes(node):
            yield from self.walk(child, where)

    def _of_statement(self, node: ast.stmt, where: str) -> Iterator[Mutation]:
        match node:
            case ast.Return(value=ast.expr() as value) if not _is_constant(value):
                yield self._change(node, "return None", where)
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
                yield self._change(node, "pass", where)
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]) if not where.endswith("__init__"):
                yield self._change(node, "pass", where)
            case ast.If(test=(ast.Name() | ast.Attribute() | ast.Call()) as test) if _is_runtime(test):
                yield self._change(test, f"(not {ast.unparse(test)})", where)


def _is_runtime(test: ast.expr) -> bool:
    return ast.unparse(test) != "TYPE_CHECKING"


def _is_constant(node: ast.expr) -> bool:
    """None, a number or a text; and a truth value, of which the other one is a change of its own."""
    return isinstance(node, ast.Constant)


def _is_silent(node: ast.AST) -> bool:
    """Docstrings, and calls whose only effect is on what people read."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__slots__":
        return True
    value = node.value if isinstance(node, ast.Expr | ast.Assign) else node
    if isinstance(value, ast.Constant):
        return isinstance(node, ast.Expr)
    if not isinstance(value, ast.Call):
        return False
    name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    return name in SILENT


def _variants(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield ast.Compare(left, [NEGATED[type(op)]()], [right])
            if type(op) in SHIFTED and (_is_count(left) or _is_count(right)):
                yield ast.Compare(left, [SHIFTED[type(op)]()], [right])
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(value * 2 if value else 1.0)


def _is_count(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", "") == "len"
    return isinstance(node, ast.Name) and "MAX" in node.id and not node.id.endswith("_S")


def mutations(file: str, source: bytes) -> list[Mutation]:
    """All changes of one file, in the order of its lines; of those with the same key the first only."""
    found: dict[str, Mutation] = {}
    tree = ast.parse(source)
    for node in tree.body:
        for change in _Finder(file, source).walk(node, "<module>"):
            found.setdefault(change.key, change)
    return list(found.values())


def sample(found: list[Mutation], count: int, seed: str) -> list[Mutation]:
    """Draw by a hash of each change's key: what is drawn today is drawn again when other code has changed."""
    return sorted(found, key=lambda each: hashlib.blake2b(f"{seed} {each.key}".encode()).digest())[:count]
