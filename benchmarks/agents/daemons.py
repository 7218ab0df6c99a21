"""An agent that leaves a daemon behind, and then goes on."""

import os
import time

from holdfast import agent, workflow


def detach():
    """Fork twice, in a session of its own, as a daemon does to outlive whoever started it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    os.wait()
    return True


def stay():
    """Work that does not end."""
    time.sleep(3600)


@agent(name="bench-daemon")
class Daemon:
    """Holds a daemon, and a step that does not end."""

    @workflow
    def run(self, ctx):
        ctx.call(detach)
        ctx.call(stay)


@agent(name="bench-bystander")
class Bystander:
    """Nobody means this one."""

    @workflow
    def run(self, ctx):
        ctx.call(stay)
