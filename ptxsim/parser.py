"""A parser of PTX text, which reads functions, variables and instructions.

The parser reads the PTX that Numba, NVVM and inline assembly write. It does not know the opcodes (decode/ does), and
runs nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .syntax import (
    Address,
    Arguments,
    Function,
    Indexed,
    Instruction,
    Label,
    Module,
    Name,
    Number,
    Pair,
    PTXError,
    Scope,
    Variable,
    Vector,
)

TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+)|(?P<newline>\n)|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"[^"\n]*")
    |(?P<number>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+U?)
    |(?P<word>[A-Za-z_$%][\w$]*(?:\.[A-Za-z0-9_]\w*(?:::\w+)*)*)|(?P<directive>\.[A-Za-z_]\w*(?:::\w+)*)
    |(?P<mark><<|>>|[-{}()\[\],;:@!|+<>=*&~^/])""",
    re.X | re.S,
)
SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4,
         "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16}  # fmt: skip
MOST_NESTED = 100
OPENING, CLOSING = ("{", "(", "["), ("}", ")", "]")
MOST_ALIGN = 1 << 16
MOST_DIGITS = 80  # the most digits of a number; 64 bits have 20, or 64 in binary
LINKAGE = (".visible", ".extern", ".weak", ".common", ".noreturn")
SPACES = (".global", ".const", ".shared", ".local", ".param")
LIMITS = (
    ".maxntid",
    ".reqntid",
    ".minnctapersm",
    ".maxnctapersm",
    ".maxnreg",
    ".noreturn",
    ".reqnctapercluster",
    ".explicitcluster",
    ".maxclusterrank",
    ".blocksareclusters",
    ".pragma",
    ".abi_preserve",
    ".abi_preserve_control",
)


@dataclass(frozen=True)
class Token:
    """A word, number or mark, and the line where it stands."""

    text: str
    line: int


def tokens(text: str) -> Iterator[Token]:
    """The tokens of PTX text; comments are left out. Raises PTXError for text that is no token."""
    line, position = 1, 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None or not match.group():
            raise PTXError(f"PTX line {line}: cannot read {text[position : position + 20]!r}")
        position = match.end()
        if match.lastgroup not in ("space", "newline", "comment"):
            yield Token(match.group(), line)
        line += match.group().count("\n")


def nesting(read: list[Token]) -> None:
    """Raise PTXError if brackets are nested too deep for recursive descent."""
    depth = 0
    for token in read:
        if token.text in OPENING:
            depth += 1
        elif token.text in CLOSING:
            depth = max(0, depth - 1)
        if depth > MOST_NESTED:
            raise PTXError(f"PTX line {token.line}: braces must be nested at most {MOST_NESTED} deep")


def parse(text: str) -> Module:
    """The module that PTX text describes. Raises PTXError, which names the line."""
    return Parser(text).module()


class Parser:
    """Reads one module by recursive descent. at: the index of the next token."""

    def __init__(self, text: str):
        self.tokens = [*tokens(text.rstrip("\0")), Token("", text.count("\n") + 1)]
        self.at = 0
        nesting(self.tokens)
        self.result = Module()
        self.source = (0, 0)
        self.defined: set[str] = set()

    # ---- tokens ----
    def peek(self, ahead: int = 0) -> str:
        """The text of the next token, or of the one `ahead` tokens after it; '' at the end."""
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)].text

    @property
    def line(self) -> int:
        """The line of the next token."""
        return self.tokens[min(self.at, len(self.tokens) - 1)].line

    def next(self) -> str:
        """Take the next token. Returns its text, or '' at the end; a further call raises PTXError."""
        text = self.peek()
        if self.at >= len(self.tokens):
            raise PTXError(f"PTX line {self.line}: the text ends within a declaration or an instruction")
        self.at += 1
        return text

    def expect(self, wanted: str) -> None:
        """Take the next token, which must be `wanted`."""
        line, got = self.line, self.next()
        if got != wanted:
            raise PTXError(f"PTX line {line}: expected {wanted!r}, got {got!r}")

    def accept(self, wanted: str) -> bool:
        """Take the next token if it is `wanted`."""
        if self.peek() == wanted:
            self.at += 1
            return True
        return False

    def integer(self) -> int:
        """Take an integer with its sign."""
        negative = self.accept("-")
        line = self.line
        value = self.number(self.next(), line)
        if value.kind != "i":
            raise PTXError(f"PTX line {line}: expected an integer")
        return -value.value if negative else value.value

    def number(self, text: str, line: int) -> Number:
        """The number of a token."""
        if len(text) > MOST_DIGITS:
            raise PTXError(f"PTX line {line}: expected a number, got {text[:MOST_DIGITS]!r}...")
        try:
            if text[:2] in ("0f", "0F"):
                return Number(int(text[2:], 16), "f")
            if text[:2] in ("0d", "0D"):
                return Number(int(text[2:], 16), "d")
            if "." in text or ("e" in text.lower() and not text.lower().startswith("0x")):
                return Number(int.from_bytes(struct.pack("<d", float(text)), "little"), "d")
            text = text.rstrip("U")
            value = int(text, 8 if len(text) > 1 and text[0] == "0" and text[1] not in "xXbB" else 0)
        except ValueError:
            raise PTXError(f"PTX line {line}: expected a number, got {text!r}") from None
        if value >> 64:
            raise PTXError(f"PTX line {line}: a number has more than 64 bits, got {text}")
        return Number(value, "i")

    # ---- module ----
    def module(self) -> Module:
        """Read the whole module."""
        while self.peek():
            word = self.peek()
            if word in (".version", ".address_size"):
                self.next()
                line, value = self.line, self.next()
                if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
                    raise PTXError(f"PTX line {line}: expected a number after {word}, got {value!r}")
            elif word == ".target":
                self.next()
                self.result.target = self.next()
                while self.accept(","):
                    self.next()
            elif word == ".file":
                self.file()
            elif word == ".loc":
                self.loc()
            elif word == ".section":
                self.section()
            elif word == ".alias":
                self.next()
                alias = self.next()
                self.expect(",")
                self.result.aliases[alias] = self.next()
                self.expect(";")
            elif word == ".pragma":
                self.skip_to(";")
            elif word in (".entry", ".func") or word in LINKAGE or word in SPACES:
                self.declaration()
            elif word == ";":
                self.next()
            else:
                raise PTXError(f"PTX line {self.line}: unknown directive {word!r}")
        return self.result

    def skip_to(self, end: str) -> None:
        """Skip all tokens up to `end`, and `end` too."""
        while self.peek() and self.next() != end:
            pass

    def file(self) -> None:
        """Read .file."""
        self.next()
        number = self.integer()
        self.result.files[number] = self.next().strip('"')
        while self.accept(","):
            self.next()

    def loc(self) -> None:
        """Read .loc, the source line of the instructions that follow."""
        self.next()
        number, row = self.integer(), self.integer()
        self.integer()  # the column
        called = None
        if self.peek() == ",":
            while self.accept(","):
                word = self.next()
                if word == "function_name":
                    self.next()
                    if self.accept("+"):
                        self.next()
                elif word == "inlined_at":
                    called = (self.integer(), self.integer())
                    self.integer()
        if row or called is None:
            self.source = (number, row) if row else self.source
        if called is not None and not row:
            self.source = called

    def section(self) -> None:
        """Skip .section."""
        self.skip_to("{")
        depth = 1
        while depth and self.peek():
            word = self.next()
            depth += (word == "{") - (word == "}")

    def declaration(self) -> None:
        """Read functions or variables outside functions."""
        words = set()
        while self.peek() in LINKAGE:
            words.add(self.next())
        line, once = self.line, not words & {".extern", ".weak", ".common"}
        if self.peek() in (".entry", ".func"):
            names = [self.function()]
        else:
            found = self.variables()
            names = [variable.name for variable in found]
            self.result.variables.update({variable.name: variable for variable in found})
        for name in names if once else ():
            if name in self.defined:
                raise PTXError(f"PTX line {line}: {name} is defined a second time")
            if name:
                self.defined.add(name)

    def function(self) -> str:
        """Read a function. Returns its name if it has a body, else ''."""
        line = self.line
        entry = self.next() == ".entry"
        while self.peek() in LINKAGE:
            self.next()
        returns = self.parameters() if self.peek() == "(" else []
        name = self.next()
        params = self.parameters() if self.peek() == "(" else []
        limits: dict[str, list[int]] = {}
        while self.peek() in LIMITS:
            word = self.next()
            values = []
            if word == ".pragma":
                self.skip_to(";")
                continue
            while re.match(r"[0-9]", self.peek()):
                values.append(self.integer())
                if not self.accept(","):
                    break
            limits[word] = values
        body = None
        if self.peek() == "{":
            self.source = (0, 0)
            body = self.scope()
        else:
            self.accept(";")
        old = self.result.functions.get(name)
        if body is not None or old is None:
            self.result.functions[name] = Function(name, entry, params, returns, body, line, limits)
        return name if body is not None else ""

    def parameters(self) -> list[Variable]:
        """Read a list of parameters in parentheses."""
        self.expect("(")
        found = []
        while not self.accept(")"):
            space = self.next()  # .param or .reg
            found.append(self.variable(space, self.line))
            self.accept(",")
        return found

    def variables(self) -> list[Variable]:
        """Read a declaration of variables."""
        space = self.next()
        first = self.variable(space, self.line)
        found = [first]
        while self.accept(","):
            more = self.variable(space, self.line, like=first)
            found.append(more)
        self.expect(";")
        return found

    def variable(self, space: str, line: int, like: Variable | None = None) -> Variable:
        """Read one variable. like: the first variable of its declaration."""
        align, vector, kind = 0, 1, ""
        while self.peek().startswith("."):
            word = self.next()
            if word == ".align":
                align = self.integer()
                if align < 1 or align > MOST_ALIGN or align & (align - 1):
                    raise PTXError(f"PTX line {line}: .align must be a power of two up to {MOST_ALIGN}, got {align}")
            elif word == ".ptr":
                while self.peek() in (*SPACES, ".align"):
                    if self.next() == ".align":
                        self.integer()
            elif word in (".v2", ".v4", ".v8"):
                vector = int(word[2:])
            elif word in (".attribute", ".managed"):
                if self.accept("("):
                    self.skip_to(")")
            elif word[1:] in SIZES:
                kind = word[1:]
            else:
                raise PTXError(f"PTX line {line}: unknown type or attribute {word!r} of a variable")
        if like is not None and not kind:
            kind, vector, align = like.type, like.vector, like.align
        if not kind:
            raise PTXError(f"PTX line {line}: a variable must have a type")
        name = self.next()
        count = 1
        while self.accept("["):
            if self.accept("]"):
                count = 0
            else:
                many = self.integer()
                if many < 0:
                    raise PTXError(f"PTX line {line}: the size of {name} must not be negative, got {many}")
                count *= many
                self.expect("]")
        element = SIZES[kind]
        values: list[Any] = []
        if self.accept("="):
            self.initialiser(values, kind)
        if count == 0 and values:
            count = len(values)
        size = element * vector * count
        if len(values) * element > size:
            raise PTXError(f"PTX line {line}: {name} must have at most {count} values, got {len(values)}")
        return Variable(name, space[1:], kind, max(align, element * vector), size, values, element, vector)

    def initialiser(self, values: list[Any], kind: str) -> None:
        """Append the values of an initialiser."""
        if self.accept("{"):
            while not self.accept("}"):
                self.initialiser(values, kind)
                self.accept(",")
            return
        line, word = self.line, self.peek()
        if word == "-" or re.match(r"[0-9]", word):
            negative = self.accept("-")
            value = self.number(self.next(), line)
            values.append(-value.value if negative else value.value)
            return
        if self.accept("generic"):
            self.expect("(")
            symbol = self.next()
            self.expect(")")
        elif word in ("mask",):
            raise PTXError(f"PTX line {line}: the mask() operator is not supported")
        else:
            symbol = self.next()
        values.append((symbol, self.integer() if self.accept("+") else 0))

    # ---- bodies ----
    def scope(self, depth: int = 0) -> Scope:
        """Read `{ ... }`."""
        self.expect("{")
        if depth > MOST_NESTED:
            raise PTXError(f"PTX line {self.line}: braces must be nested at most {MOST_NESTED} deep")
        scope = Scope()
        while not self.accept("}"):
            word = self.peek()
            if not word:
                raise PTXError(f"PTX line {self.line}: a body must end with a closing brace")
            if word == "{":
                scope.items.append(self.scope(depth + 1))
            elif word == ".reg":
                self.register(scope)
            elif word == ".loc":
                self.loc()
            elif word == ".file":
                self.file()
            elif word == ".pragma":
                self.skip_to(";")
            elif word in SPACES:
                for variable in self.variables():
                    scope.variables[variable.name] = variable
            elif word == ";":
                self.next()
            elif self.peek(1) == ":" and self.peek(2) in (".callprototype", ".branchtargets", ".calltargets"):
                self.targets(scope)
            elif self.peek(1) == ":":
                scope.items.append(Label(self.next(), self.line))
                self.next()
            else:
                scope.items.append(self.instruction())
        return scope

    def targets(self, scope: Scope) -> None:
        """Read .branchtargets; skip .callprototype and .calltargets."""
        name = self.next()
        self.next()
        if self.next() == ".branchtargets":
            scope.targets[name] = []
            while not self.accept(";"):
                word = self.next()
                if word != ",":
                    scope.targets[name].append(word)
        else:
            self.skip_to(";")

    def register(self, scope: Scope) -> None:
        """Read .reg."""
        self.next()
        line, kind = self.line, self.next()[1:]
        if kind not in SIZES:
            raise PTXError(f"PTX line {line}: registers of type .{kind} are not supported")
        while True:
            name, family = self.next(), self.accept("<")
            if name in scope.families if family else name in scope.registers or scope.of_family(name):
                raise PTXError(f"PTX line {line}: {name} is declared a second time")
            if family:
                scope.families[name] = (kind, self.integer())
                self.expect(">")
            else:
                scope.registers[name] = kind
            if not self.accept(","):
                break
        self.expect(";")

    def instruction(self) -> Instruction:
        """Read one instruction with its guard."""
        guard = None
        line = self.line
        if self.accept("@"):
            negated = self.accept("!")
            guard = Name(self.next(), negated)
        opcode, *mods = self.next().split(".")
        if not re.match(r"[a-z_]\w*$", opcode):
            raise PTXError(f"PTX line {line}: expected an instruction, got {opcode!r}")
        operands: list[Any] = []
        try:
            while not self.accept(";"):
                operands.append(self.operand())
                if not self.accept(",") and self.peek() != ";":
                    raise PTXError(f"PTX line {self.line}: expected ',' or ';' after an operand, got {self.peek()!r}")
        except PTXError as error:
            raise PTXError(f"{error} (instruction {'.'.join([opcode, *mods])})") from None
        return Instruction(opcode, mods, operands, guard, line, self.source)

    def operand(self) -> Any:
        """Read an operand or a pair of them."""
        first = self.simple()
        if self.accept("|"):
            return Pair(first, self.simple())
        return first

    def simple(self) -> Any:
        """Read an operand that is not a pair."""
        line, word = self.line, self.next()
        if word in ("{", "("):
            end = "}" if word == "{" else ")"
            items = []
            while not self.accept(end):
                items.append(self.operand())
                self.accept(",")
            return Vector(tuple(items)) if word == "{" else Arguments(tuple(items))
        if word == "[":
            return self.address(line)
        if word == "!":
            return Name(self.next(), True)
        if word == "-":
            value = self.number(self.next(), line)
            bits = {"f": 1 << 31, "d": 1 << 63}.get(value.kind)
            return Number(value.value ^ bits, value.kind) if bits else Number(-value.value, "i")
        if re.match(r"[0-9]", word):
            return self.number(word, line)
        if not re.match(r"[A-Za-z_$%]", word):
            raise PTXError(f"PTX line {line}: expected an operand, got {word!r}")
        if self.peek() in ("+", "-") and re.match(r"[0-9]", self.peek(1)):  # variable+offset
            sign = 1 if self.next() == "+" else -1
            return Address(Name(word), sign * self.integer())
        return Name(word)

    def address(self, line: int) -> Any:
        """Read the rest of `[base+offset]`."""
        base, offset = None, 0
        if re.match(r"[A-Za-z_$%]", self.peek()):
            base = Name(self.next())
        elif self.peek() != "]":
            offset = self.integer()
        while self.peek() in ("+", "-"):
            sign = 1 if self.next() == "+" else -1
            offset += sign * self.integer()
        more = []
        while self.accept(","):
            more.append(self.operand())
        self.expect("]")
        return Indexed(Address(base, offset), tuple(more)) if more else Address(base, offset)
