"""The workflow that is killed at every write: steps, a child, an approval, a timer, connectors of each class."""

from holdfast import agent, workflow


@agent(name="crashed")
class Crashed:
    @workflow
    def main(self, ctx):
        total = 0
        for number in range(10):
            total += ctx.call(self.add, number)
        paid = ctx.tool("pay", amount=total)
        noted = ctx.tool("note", text="paid")
        child = ctx.spawn(Child, {"of": total})
        read = ctx.tool("read")
        ctx.sleep(0.05)
        asked = ctx.approve({"total": total})
        booked = ctx.tool("book", amount=total)
        for number in range(10):
            total += ctx.call(self.add, number)
        return {
            "total": total,
            "paid": paid["amount"],
            "noted": noted["text"],
            "child": child.result(),
            "read": read["value"],
            "approved": asked.approved,
            "booked": booked["amount"],
        }

    def add(self, number):
        return number


@agent(name="crashed-child")
class Child:
    @workflow
    def main(self, ctx):
        return ctx.call(self.twice, ctx.input.of)

    def twice(self, number):
        return 2 * number
