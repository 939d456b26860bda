"""What would be right, in our words: pydantic's speak of Python types."""

from typing import cast

from pydantic_core import ErrorDetails

from tieredkv.config.source import suggestion


def remedy(details: ErrorDetails) -> str:
    """The second half of a complaint about one value of a strict model."""
    context = details.get("ctx", {})
    match details["type"]:
        case "bool_type":
            return "must be true or false"
        case "int_type":
            return "must be a whole number"
        case "float_type" | "finite_number":
            return "must be a number"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than":
            return f"must be less than {context['lt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "missing":
            return "is missing"
        case "literal_error":
            words = cast(str, context["expected"]).replace("'", "")
            known = tuple(words.replace(" or ", ", ").split(", "))
            return f"must be {'one of ' if len(known) > 1 else ''}{words}{suggestion(str(details['input']), known)}"
        case _:
            return details["msg"].removeprefix("Value error, ")
