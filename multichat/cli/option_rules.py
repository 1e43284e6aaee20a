"""Options that contradict each other or do nothing: one table, checked before a command runs.

Owns what may be said together on a command line, in the environment and in the configuration file.
An option of the command line comes before the environment, and that before the file: where two
contradict each other the weaker one is left out, and only where neither is weaker it is a mistake.
"""

from typing import Any, NamedTuple

from typer.core import TyperCommand

from multichat.cli.process import UsageMistake, utf8_text

__all__ = ["RULES", "CheckedCommand", "Excludes", "Needs", "Useless"]


class Excludes(NamedTuple):
    """*name* and *other* contradict each other."""

    name: str
    other: str


class Useless(NamedTuple):
    """*name* does nothing where *other* is given, or is given as one of *values*."""

    name: str
    other: str
    values: tuple[str, ...] = ()


class Needs(NamedTuple):
    """*name* does nothing unless *other* is given; *where* is a condition, another parameter."""

    name: str
    other: str
    where: str = ""


Rule = Excludes | Useless | Needs

# A Unix socket has no TLS.
_NO_TLS = tuple(Useless(name, "unix") for name in ("tls", "tls_ca", "tls_name"))
_ONE_SERVER = (Excludes("unix", "host"), Excludes("unix", "port"))

# By the names of the parameters, as the functions have them.
RULES: dict[str, tuple[Rule, ...]] = {
    "connect": (
        *_NO_TLS,
        *_ONE_SERVER,
        Excludes("json", "plain"),
        Excludes("replay", "plain"),
        Excludes("log_style", "json"),
        Useless("no_reconnect", "plain"),
        Useless("no_reconnect", "json"),
        # Without a terminal to talk on there is nothing to ring and nothing to colour.
        *(
            Useless(name, other)
            for name in ("bell", "color")
            for other in ("json", "log_style", "listen")
        ),
    ),
    "send": _NO_TLS,
    "who": (*_NO_TLS, *_ONE_SERVER),
    "serve": (
        Needs("unix_mode", "unix"),
        Needs("tls_key", "tls_cert"),
        # With --unix there is a TCP port only if one is given.
        Needs("host", "port", where="unix"),
        Needs("tls_cert", "port", where="unix"),
        Needs("max_clients_per_address", "port", where="unix"),
        Needs("burst", "rate"),
        Needs("durability", "journal"),
        Needs("keep_days", "journal"),
        # --stall-timeout is for a client that returns and catches up, too.
        Useless("slow_timeout", "slow", ("drop", "disconnect")),
    ),
}

# The order of precedence; what is not given is 0.
_LAYERS = {"DEFAULT_MAP": 1, "ENVIRONMENT": 2, "COMMANDLINE": 3}


class CheckedCommand(TyperCommand):
    """A command whose parameters are checked against `RULES`, and their text decoded."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; raises `UsageMistake` instead where its parameters break a rule."""
        for parameter in self.params:
            name = str(parameter.name)
            is_option = parameter.param_type_name == "option"
            value = ctx.params.get(name)
            if parameter.type.name != "path":  # which may have any bytes
                value = _decoded(value, _described(ctx, name))
            if is_option and "" in (value if isinstance(value, list | tuple) else [value]):
                raise UsageMistake(f"{_described(ctx, name)} is empty")
            ctx.params[name] = value
        for rule in RULES.get(str(self.name), ()):
            _apply(ctx, rule)
        return super().invoke(ctx)


def _apply(ctx: Any, rule: Rule) -> None:
    ours, theirs = _layer(ctx, rule.name), _layer(ctx, rule.other)
    name, other = _described(ctx, rule.name), _described(ctx, rule.other)
    if isinstance(rule, Useless) and rule.values:
        value = ctx.params[rule.other]  # of an enumeration, before typer makes it a member of that
        if value not in rule.values:
            return
        other += f" {value}"
    match rule:
        case Excludes() if ours and ours == theirs:
            raise UsageMistake(f"{name} and {other} exclude each other")
        case Excludes() if ours and theirs:
            _leave_out(ctx, rule.name if ours < theirs else rule.other)
        case Useless() if theirs and ours >= theirs:
            raise UsageMistake(f"{name} does nothing with {other}")
        case Useless() if theirs and ours:
            _leave_out(ctx, rule.name)
        case Needs(where=where) if ours and not theirs and (not where or _layer(ctx, where)):
            also = f" beside {_described(ctx, where)}" if where else ""
            raise UsageMistake(f"{name} needs {other}{also}")


def _layer(ctx: Any, name: str) -> int:
    """Return how strongly *name* is given; 0 for not at all, or switched off."""
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


def _described(ctx: Any, name: str) -> str:
    """Return *name* as whoever gave it wrote it."""
    [parameter] = [each for each in ctx.command.params if each.name == name]
    source = ctx.get_parameter_source(name)
    if source is not None and source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    return str(parameter.opts[0]) if parameter.param_type_name == "option" else name.upper()


def _decoded(value: Any, name: str) -> Any:
    """Return *value* with its text decoded; raises `UsageMistake` if it is no UTF-8."""
    if isinstance(value, list | tuple):
        return type(value)(_decoded(each, name) for each in value)
    return utf8_text(value, name) if isinstance(value, str) else value
