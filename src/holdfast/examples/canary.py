"""The canary of a drill: it starts a process that would outlive a careless kill, and then waits to be stopped."""

import os
import time

from holdfast import agent, workflow


@agent(name="holdfast-canary")
class Canary:
    """Holds a double-forked daemon until it is killed."""

    @workflow
    def hold(self, ctx):  # type: ignore[no-untyped-def]
        """Start the daemon, say so, wait."""
        ctx.call(self.daemon)
        ctx.call(self.wait)

    def daemon(self) -> str:
        """A grandchild in a session of its own."""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    time.sleep(3600)
            os._exit(0)
        os.wait()
        return "holding"

    def wait(self) -> None:
        """Longer than any drill."""
        time.sleep(3600)
