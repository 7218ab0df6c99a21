"""Revisions of the journal's tables: SQL under ``sql``, and Alembic's view of it."""
