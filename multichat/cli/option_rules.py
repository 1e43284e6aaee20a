"""Options that exclude each other or have no effect: one table, checked before a command runs.

Options on the command line override environment variables, which override the configuration file:
of two options that exclude each other the one with lower precedence is ignored.  It is a mistake
only if both have the same.
"""

from functools import partial
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperOption

from multichat.cli.process import UsageMistake, utf8_text

__all__ = [
    "RULES",
    "CheckedCommand",
    "Excludes",
    "Needs",
    "Useless",
    "described",
    "reworded",
]


class Excludes(NamedTuple):
    """*name* and *other* exclude each other."""

    name: str
    other: str


class Useless(NamedTuple):
    """*name* has no effect if *other* is given, or is given as one of *values*."""

    name: str
    other: str
    values: tuple[str, ...] = ()


class Needs(NamedTuple):
    """*name* has no effect unless *other* is given.

    If *where* is set, the rule applies only when *where* is given, and not when *unless* is.
    """

    name: str
    other: str
    where: str = ""
    unless: str = ""


Rule = Excludes | Useless | Needs

# A Unix socket has no TLS.
_NO_TLS = tuple(Useless(name, "unix") for name in ("tls", "tls_ca", "tls_name"))
_ONE_SERVER = (Excludes("unix", "host"), Excludes("unix", "port"))

# By the names of the parameters, as the functions have them.
RULES: dict[str, tuple[Rule, ...]] = {
    "connect": (
        *_NO_TLS,
        *_ONE_SERVER,
        Needs("passphrase_file", "login"),
        Excludes("json", "plain"),
        Excludes("replay", "plain"),
        Excludes("log_style", "json"),
        Useless("no_reconnect", "plain"),
        Useless("no_reconnect", "json"),
        # There is no bell and no color without a terminal.
        *(
            Useless(name, other)
            for name in ("bell", "color")
            for other in ("json", "log_style", "listen")
        ),
    ),
    "send": (*_NO_TLS, Needs("passphrase_file", "login")),
    "who": (*_NO_TLS, *_ONE_SERVER),
    "serve": (
        Needs("unix_mode", "unix"),
        Needs("tls_key", "tls_cert"),
        # With --unix there is a TCP port only if one is given, or that of the page.
        Needs("host", "port", where="unix", unless="web"),
        Needs("tls_cert", "port", where="unix", unless="web"),
        Needs("max_clients_per_address", "port", where="unix", unless="web"),
        Needs("proxy", "port", where="unix", unless="web"),
        Needs("web_host", "web"),
        Needs("web_url", "web"),
        Needs("web_proxy", "web"),
        Needs("webhook_token_file", "web"),
        Needs("metrics_host", "metrics"),
        Needs("burst", "rate"),
        Needs("filter_joins", "filter_"),
        Needs("durability", "journal"),
        Excludes("journal", "cluster"),
        Needs("cluster_password_file", "cluster"),
        Needs("cluster_ca", "cluster"),
        Needs("cluster_tls_name", "cluster"),
        # The bans are in the cluster.
        Useless("ban_file", "cluster"),
        Needs("keep_days", "journal", unless="cluster"),
        Needs("operators", "journal", unless="cluster"),
        Needs("operators_file", "journal", unless="cluster"),
        # --stall-timeout also applies to a client that resumes its session and catches up.
        Useless("slow_timeout", "slow", ("drop", "disconnect")),
    ),
}

# Options that are given more than once to some commands, and once to the others.
_ONCE = ("room",)

# The precedence of a source; 0 if the option is not given.
_LAYERS = {"DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}


# The names of options take up to 30 columns, and the longest name of a variable has 33, which is
# broken in two where it does not fit.
_NARROW_COLUMNS = 68
_NARROW_OPTION_COLUMNS = 16

# By the names of typer's types.
_NOT_OF_KIND = {
    "boolean": "neither yes nor no",
    "float": "not a number",
    "float range": "not a number",
    "int range": "not a whole number",
}


class CheckedCommand(TyperCommand):
    """A command whose parameters are checked against `RULES`, and their text decoded.

    Each option can also be set by a variable, `--tls-ca` by `MULTICHAT_TLS_CA`, unless it has
    `show_envvar=False` or names its variable itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for each in self.params:
            kind: Any = each.type
            if kind.name == "path":  # opening it fails in one line, and nobody reads a socket
                kind.readable = False
            if isinstance(each, TyperOption) and each.show_envvar and each.envvar is None:
                each.envvar = f"MULTICHAT_{str(each.name).rstrip('_').upper()}"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; on a narrow terminal what follows the options has room for a word."""
        if formatter.width < _NARROW_COLUMNS:
            formatter.write_dl = partial(formatter.write_dl, col_max=_NARROW_OPTION_COLUMNS)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse *args*; raises `UsageMistake` for an invalid variable, which `args` do not show.

        And for a second --room, where `connect` would take both and the last would win.
        """
        self._check_once(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            name = str(error.param.name) if error.param is not None else ""
            source = ctx.get_parameter_source(name)
            if source is not None and source.name == "ENVIRONMENT" and error.param is not None:
                reason = reworded(error.message, error.param.type.name)
                raise UsageMistake(f"{described(ctx, name)}: {reason}") from None
            raise

    def _check_once(self, ctx: Any, args: list[str]) -> None:
        once = {each.name for each in self.params if each.name in _ONCE and not _is_multiple(each)}
        if once:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for name in once:
                if sum(each.name == name for each in order) > 1:
                    raise UsageMistake(f"{self.name} takes one --{name}; it is given twice")

    def invoke(self, ctx: Any) -> Any:
        """Run the command; raises `UsageMistake` if its parameters break a rule."""
        for parameter in self.params:
            name = str(parameter.name)
            is_option = parameter.param_type_name == "option"
            value = ctx.params.get(name)
            if parameter.type.name != "path":  # a path may have any bytes
                value = _decoded(value, described(ctx, name))
            if is_option and "" in (value if isinstance(value, list | tuple) else [value]):
                raise UsageMistake(f"{described(ctx, name)} is empty")
            ctx.params[name] = value
        for rule in RULES.get(str(self.name), ()):
            _apply(ctx, rule)
        return super().invoke(ctx)


def _is_multiple(parameter: Any) -> bool:
    return isinstance(parameter, TyperOption) and parameter.multiple


def reworded(message: str, kind: str) -> str:
    """Return typer's *message* about a value that is not of this *kind*, worded as our own."""
    value, is_other_kind, _ = message.rpartition(" is not a valid ")
    return f"{value} is {_NOT_OF_KIND[kind]}" if is_other_kind else message.rstrip(".")


def _apply(ctx: Any, rule: Rule) -> None:
    ours, theirs = _layer(ctx, rule.name), _layer(ctx, rule.other)
    name, other = described(ctx, rule.name), described(ctx, rule.other)
    if isinstance(rule, Useless) and rule.values:
        value = ctx.params[rule.other]  # a string: typer makes it a member of the enumeration later
        if value not in rule.values:
            return
        other += f" {value}"
    match rule:
        case Excludes() if ours and ours == theirs:
            raise UsageMistake(f"{name} and {other} exclude each other")
        case Excludes() if ours and theirs:
            _leave_out(ctx, rule.name if ours < theirs else rule.other)
        case Useless() if theirs and ours >= theirs:
            raise UsageMistake(f"{name} has no effect with {other}")
        case Useless() if theirs and ours:
            _leave_out(ctx, rule.name)
        case Needs(where=where, unless=unless) if (
            ours
            and not theirs
            and (not where or _layer(ctx, where))
            and not (unless and _layer(ctx, unless))
        ):
            also = f" with {described(ctx, where)}" if where else ""
            raise UsageMistake(f"{name} needs {other}{also}")


def _layer(ctx: Any, name: str) -> int:
    """Return the precedence of the source of *name*; 0 if it is not given, or off."""
    value = ctx.params[name]
    if value is None or value is False or (value == 0 and name == "replay"):
        return 0
    source = ctx.get_parameter_source(name)
    return _LAYERS.get(source.name, 0) if source is not None else 0


def _leave_out(ctx: Any, name: str) -> None:
    [parameter] = [each for each in ctx.command.params if each.name == name]
    default = parameter.type_cast_value(ctx, parameter.default)
    ctx.params[name] = default
    ctx.set_parameter_source(name, type(ctx.get_parameter_source(name)).DEFAULT)


def described(ctx: Any, name: str) -> str:
    """Return the parameter *name* as it was given: an option, an argument or a variable."""
    [parameter] = [each for each in ctx.command.params if each.name == name]
    source = ctx.get_parameter_source(name)
    if source is not None and source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    return str(parameter.opts[0]) if parameter.param_type_name == "option" else name.upper()


def _decoded(value: Any, name: str) -> Any:
    """Return *value* with its text decoded; raises `UsageMistake` if it is not UTF-8."""
    if isinstance(value, list | tuple):
        return type(value)(_decoded(each, name) for each in value)
    return utf8_text(value, name) if isinstance(value, str) else value
