"""`polyserve serve`: OpenAI's HTTP API and gRPC for one model, until the process is told to stop."""

import click

from polyserve.api.limits import Limits
from polyserve.cli.options import Flags, SectionedCommand, flags_of
from polyserve.config import EngineConfig, ServerConfig
from polyserve.service.admission import AdmissionConfig


@click.command(cls=SectionedCommand)
@flags_of(ServerConfig, "server", section="Server")
@flags_of(Limits, "limits", section="Limits of what a client may send")
@flags_of(AdmissionConfig, "admission", section="Admission")
@flags_of(EngineConfig, "engine", argument="model", section="Engine")
def serve(
    engine: Flags[EngineConfig],
    server: Flags[ServerConfig],
    limits: Flags[Limits],
    admission: Flags[AdmissionConfig],
) -> int:
    """Serve a model over HTTP (OpenAI's API) and gRPC."""
    engine_config, server_config, limits_config = engine.build(), server.build(), limits.build()
    admission_config = admission.build()

    import uvloop

    from polyserve.api.start import run
    from polyserve.log import set_up_logging

    set_up_logging(server_config.log_level, server_config.log_format)
    return uvloop.run(run(engine_config, server_config, limits_config, admission_config))
