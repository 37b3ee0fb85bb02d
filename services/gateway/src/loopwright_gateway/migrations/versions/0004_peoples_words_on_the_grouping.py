"""People's words on the grouping, and what is needed to carry them out and to take them back"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Defaults of the server's: a replica of the release before writes rows without these while an upgrade rolls.
    with op.batch_alter_table("signals_seen", schema=None) as batch_op:
        batch_op.add_column(sa.Column("fingerprint", sa.String(length=512), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("told_report_id", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("occurred_at", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.drop_index("ix_signals_seen_report_id")
    op.execute("UPDATE signals_seen SET occurred_at = minute, told_report_id = report_id")
    with op.batch_alter_table("signals_seen", schema=None) as batch_op:
        batch_op.create_index("signals_seen_by_report", ["report_id", "occurred_at", "signal_id"], unique=False)

    op.create_table(
        "first_decisions",
        sa.Column("report_id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=512), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("signal_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("title", sa.String(length=512), nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("signal", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("report_id", "fingerprint"),
    )
    with op.batch_alter_table("first_decisions", schema=None) as batch_op:
        batch_op.create_index("first_decisions_by_fingerprint", ["project", "fingerprint"], unique=False)

    op.create_table(
        "words",
        sa.Column("command_id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("report_id", sa.String(length=64), nullable=False),
        sa.Column("other_report_id", sa.String(length=64), nullable=True),
        sa.Column("new_report_id", sa.String(length=64), nullable=True),
        sa.Column("undoes", sa.String(length=64), nullable=True),
        sa.Column("fingerprints", sa.Text(), nullable=False),
        sa.Column("signals", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=512), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=False),
        sa.Column("undone_by", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("command_id"),
    )
    with op.batch_alter_table("words", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_words_report_id"), ["report_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_words_other_report_id"), ["other_report_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_words_new_report_id"), ["new_report_id"], unique=False)

    op.create_table(
        "signal_moves",
        sa.Column("command_id", sa.String(length=64), nullable=False),
        sa.Column("signal_id", sa.String(length=64), nullable=False),
        sa.Column("from_report_id", sa.String(length=64), nullable=False),
        sa.Column("to_report_id", sa.String(length=64), nullable=False),
        sa.Column("alone", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("command_id", "signal_id"),
    )
    with op.batch_alter_table("signal_moves", schema=None) as batch_op:
        batch_op.create_index("signal_moves_by_signal", ["signal_id", "at"], unique=False)
        batch_op.create_index(batch_op.f("ix_signal_moves_at"), ["at"], unique=False)

    op.create_table(
        "fingerprint_moves",
        sa.Column("command_id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=512), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("from_report_id", sa.String(length=64), nullable=False),
        sa.Column("to_report_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("command_id", "fingerprint"),
    )
    with op.batch_alter_table("fingerprint_moves", schema=None) as batch_op:
        batch_op.create_index("fingerprint_moves_by_fingerprint", ["fingerprint", "project"], unique=False)


def downgrade() -> None:
    for table in ("fingerprint_moves", "signal_moves", "words", "first_decisions"):
        op.drop_table(table)
    with op.batch_alter_table("signals_seen", schema=None) as batch_op:
        batch_op.drop_index("signals_seen_by_report")
    with op.batch_alter_table("signals_seen", schema=None) as batch_op:
        batch_op.drop_column("occurred_at")
        batch_op.drop_column("told_report_id")
        batch_op.drop_column("fingerprint")
        batch_op.create_index("ix_signals_seen_report_id", ["report_id"], unique=False)
