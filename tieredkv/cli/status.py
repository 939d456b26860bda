"""`tieredkv status`: what the running sidecar says about itself."""

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json


def status(config: settings.ConfigFile = None, socket: settings.Socket = None, json: settings.JsonFile = None) -> None:
    """Ask the sidecar of this node once, and print its answer. Exit code 3: nobody answers.

    Example: tieredkv status --json -
    """
    check_destination(json)
    path = settings.load(config, settings.flags(socket=socket)).config.socket
    from tieredkv.cli.admin import Admin

    with Admin(path) as admin:
        document = admin.status()
    if json is not None:
        write_json(json, document)
    if json != STANDARD_OUTPUT:
        from rich.console import Console

        from tieredkv.cli.status_tables import tables

        console = Console()
        for table in tables(document):
            console.print(table)
