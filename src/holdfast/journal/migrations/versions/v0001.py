"""Everything, from the first day."""

from alembic import op

from holdfast.journal.migrate import statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    for statement in statements(op.get_bind().dialect.name, revision):
        op.execute(statement)


def downgrade() -> None:
    """A journal is append-only: there is no way back from the first revision."""
    raise RuntimeError("the first revision of the journal cannot be taken back; restore a backup instead")
