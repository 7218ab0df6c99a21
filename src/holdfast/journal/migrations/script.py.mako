"""${message}."""

from alembic import op

from holdfast.journal.migrate import statements

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run this revision's SQL."""
    for statement in statements(op.get_bind().dialect.name, revision):
        op.execute(statement)


def downgrade() -> None:
    """A journal only goes forward; the way back is a backup."""
    raise RuntimeError("a journal's version only goes up; restore a backup instead")
