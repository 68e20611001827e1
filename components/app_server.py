"""The application server: the only one that the world reaches, and the way in to the private ones."""

from collections.abc import Sequence

import pulumi

from components import application, monit
from components.accounts import Accounts
from components.application import HTTP_PORT, HTTPS_PORT, Application, Delivery
from components.clouds import Cloud
from components.firewall import ANYWHERE, Firewall, Redirect, Rule
from components.server import Server, ServerArgs
from components.settings import DEPLOY_USER, Settings


def firewall(settings: Settings) -> Firewall:
    """SSH for the operators, the web for everyone (guide, 3.9)."""
    return Firewall(
        name="application",
        rules=(
            Rule("tcp", 22, settings.ssh.operators, "SSH for operators"),
            Rule("tcp", 80, ANYWHERE, "HTTP, answered with a redirect to HTTPS"),
            Rule("tcp", 443, ANYWHERE, "HTTPS"),
        ),
        redirects=(
            Redirect(80, HTTP_PORT, "HTTP to the port of the application"),
            Redirect(443, HTTPS_PORT, "HTTPS to the port of the application"),
        ),
    )


class AppServer(pulumi.ComponentResource):
    """An application server. With `jump_targets` it is also the bastion for those (`address:port`)."""

    server: Server

    def __init__(
        self,
        name: str,
        settings: Settings,
        cloud: Cloud,
        delivery: Delivery | None,
        *,
        jump_targets: Sequence[str] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Build the server `name`, which is one of `settings.app_addresses`, with the release of `delivery`."""
        super().__init__("uds:server:AppServer", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        deploy_sources = [str(source) for source in settings.ssh.operators]
        self.server = Server(
            name,
            ServerArgs(
                private_address=settings.app_addresses[name],
                size=settings.app_size,
                firewall=firewall(settings),
                packages=[*monit.PACKAGES, *settings.app.packages],
                deploy_sources=deploy_sources,
                jump_targets=jump_targets,
            ),
            settings,
            cloud,
            opts=child,
        )
        Accounts(f"{name}-accounts", settings, self.server, opts=child)
        Application(f"{name}-application", settings, self.server, delivery, opts=child)
        watches = {"application": application.watch(settings)}
        monit.Monit(f"{name}-monit", settings, self.server, {DEPLOY_USER: deploy_sources}, watches, opts=child)
        self.register_outputs({})
