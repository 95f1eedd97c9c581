"""The one store: a SQLite file (WAL) with an append-only journal and the tables folded from it.

Owns one invariant: the schema only changes by a numbered migration, and every statement has a name in ``QUERIES``. The
store knows rows, not tasks; turning rows into values is the caller's. Only the daemon writes; any number of readers may
open it read-only meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.domain.errors import DamagedLedger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from coordinator.domain.event import Published

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL, task TEXT, data TEXT NOT NULL);
    CREATE INDEX journal_by_task ON journal (task, seq);
    CREATE TABLE tasks (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, priority INTEGER NOT NULL, title TEXT NOT NULL, role TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '', generation INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
        tries INTEGER NOT NULL DEFAULT 0, hold INTEGER NOT NULL DEFAULT 0, cancel TEXT NOT NULL DEFAULT '',
        not_before REAL NOT NULL DEFAULT 0, file TEXT NOT NULL, line INTEGER NOT NULL, digest TEXT NOT NULL,
        definition TEXT NOT NULL, commit_hash TEXT NOT NULL DEFAULT '', feedback TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
    CREATE INDEX tasks_by_state ON tasks (state, priority, id);
    CREATE TABLE attempts (
        task TEXT NOT NULL, generation INTEGER NOT NULL, role TEXT NOT NULL DEFAULT '', agent TEXT NOT NULL DEFAULT '',
        pid INTEGER, host TEXT NOT NULL DEFAULT '', base TEXT NOT NULL DEFAULT '', claimed_at TEXT, ended_at TEXT,
        ending TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', rescue TEXT NOT NULL DEFAULT '',
        exit_code INTEGER, cost_usd REAL NOT NULL DEFAULT 0, duration_s REAL NOT NULL DEFAULT 0,
        PRIMARY KEY (task, generation)) WITHOUT ROWID;
    CREATE TABLE problems (
        file TEXT NOT NULL, line INTEGER NOT NULL, key TEXT NOT NULL, message TEXT NOT NULL, expected TEXT NOT NULL);
    CREATE TABLE findings (
        fingerprint TEXT PRIMARY KEY, tool TEXT NOT NULL, rule TEXT NOT NULL, state TEXT NOT NULL, path TEXT NOT NULL,
        line INTEGER NOT NULL, fix TEXT NOT NULL, severity INTEGER NOT NULL, message TEXT NOT NULL,
        task TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', data TEXT NOT NULL,
        first_seen TEXT NOT NULL, last_seen TEXT NOT NULL);
    CREATE INDEX findings_by_state ON findings (state, tool, rule);
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE baselines (
        tree TEXT NOT NULL, command TEXT NOT NULL, outcome TEXT NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (tree, command)) WITHOUT ROWID;
    """,
    """
    ALTER TABLE tasks ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN resume TEXT NOT NULL DEFAULT '';
    ALTER TABLE attempts ADD COLUMN session TEXT NOT NULL DEFAULT '';
    ALTER TABLE attempts ADD COLUMN turns INTEGER NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE calls (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, task TEXT NOT NULL, data TEXT NOT NULL);
    CREATE INDEX calls_by_task ON calls (task, number);
    CREATE TABLE spend (
        day TEXT NOT NULL, task TEXT NOT NULL, role TEXT NOT NULL, upstream TEXT NOT NULL, model TEXT NOT NULL,
        calls INTEGER NOT NULL, unpriced INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        cache_read_tokens INTEGER NOT NULL, cache_write_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL,
        collapsed INTEGER NOT NULL, saved_usd REAL NOT NULL,
        PRIMARY KEY (day, task, role, upstream, model)) WITHOUT ROWID;
    CREATE INDEX spend_by_task ON spend (task);
    """,
    """
    DELETE FROM findings;
    CREATE INDEX findings_by_task ON findings (task);
    CREATE TABLE finding_days (
        day TEXT NOT NULL, tool TEXT NOT NULL, found INTEGER NOT NULL, fixed INTEGER NOT NULL, reopened INTEGER NOT NULL,
        dismissed INTEGER NOT NULL, PRIMARY KEY (day, tool)) WITHOUT ROWID;
    """,
    """
    CREATE TABLE decisions (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, task TEXT NOT NULL, generation INTEGER NOT NULL,
        role TEXT NOT NULL, kind TEXT NOT NULL, size TEXT NOT NULL, attempt INTEGER NOT NULL, attempts INTEGER NOT NULL,
        previous TEXT NOT NULL, value_usd REAL NOT NULL, arm TEXT NOT NULL, arms TEXT NOT NULL, propensities TEXT NOT NULL,
        policy TEXT NOT NULL, version INTEGER NOT NULL, pinned INTEGER NOT NULL, outcome TEXT NOT NULL DEFAULT '',
        outcome_at TEXT NOT NULL DEFAULT '', landed INTEGER, quality REAL, cost_usd REAL NOT NULL DEFAULT 0,
        took_s REAL NOT NULL DEFAULT 0, evidence TEXT NOT NULL DEFAULT '{}', UNIQUE (task, generation));
    CREATE TABLE router_states (policy TEXT PRIMARY KEY, at TEXT NOT NULL, data TEXT NOT NULL);
    """,
    """
    CREATE TABLE telemetry (
        span_s REAL NOT NULL, at TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (span_s, at)) WITHOUT ROWID;
    CREATE TABLE incidents (
        number INTEGER PRIMARY KEY, began TEXT NOT NULL, ended TEXT, level TEXT NOT NULL, cause TEXT NOT NULL,
        data TEXT NOT NULL);
    """,
    """
    CREATE TABLE knob_changes (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, author TEXT NOT NULL, knob TEXT NOT NULL,
        old REAL NOT NULL, new REAL NOT NULL, why TEXT NOT NULL, trial TEXT NOT NULL, verdict TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT '', settled_at TEXT NOT NULL DEFAULT '');
    CREATE TABLE knob_snapshots (
        version INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, source TEXT NOT NULL, data TEXT NOT NULL);
    """,
)

QUERIES: Final[Mapping[str, str]] = {
    "attempt_put": """
        INSERT INTO attempts (task, generation, role, agent, pid, host, base, claimed_at, ended_at, ending, reason,
                              rescue, exit_code, cost_usd, duration_s, session, turns)
        VALUES (:task, :generation, :role, :agent, :pid, :host, :base, :claimed_at, :ended_at, :ending, :reason,
                :rescue, :exit_code, :cost_usd, :duration_s, :session, :turns)
        ON CONFLICT (task, generation) DO UPDATE SET role = excluded.role, agent = excluded.agent,
            pid = excluded.pid, host = excluded.host, base = excluded.base, claimed_at = excluded.claimed_at,
            ended_at = excluded.ended_at, ending = excluded.ending, reason = excluded.reason,
            rescue = excluded.rescue, exit_code = excluded.exit_code, cost_usd = excluded.cost_usd,
            duration_s = excluded.duration_s, session = excluded.session, turns = excluded.turns""",
    "attempts_landed": """
        SELECT task, generation FROM attempts WHERE ending = 'landed' AND rescue != '' AND ended_at < :before
        ORDER BY ended_at""",
    "attempts_of": "SELECT * FROM attempts WHERE task = :task ORDER BY generation",
    "baseline_get": "SELECT outcome FROM baselines WHERE tree = :tree AND command = :command",
    "baseline_latest": "SELECT outcome FROM baselines WHERE command = :command ORDER BY at DESC LIMIT 1",
    "baseline_put": """
        INSERT OR REPLACE INTO baselines (tree, command, outcome, at) VALUES (:tree, :command, :outcome, :at)""",
    "baselines_trim": """
        DELETE FROM baselines WHERE tree NOT IN (SELECT tree FROM baselines GROUP BY tree ORDER BY max(at) DESC LIMIT 50)""",
    "call_put": "INSERT INTO calls (at, task, data) VALUES (:at, :task, :data)",
    "calls_after": "SELECT * FROM calls WHERE number > :number ORDER BY number LIMIT :limit",
    "calls_last": "SELECT * FROM (SELECT * FROM calls ORDER BY number DESC LIMIT :limit) ORDER BY number",
    "calls_of": """
        SELECT * FROM (SELECT * FROM calls WHERE task = :task ORDER BY number DESC LIMIT :limit) ORDER BY number""",
    "calls_trim": "DELETE FROM calls WHERE number <= (SELECT max(number) FROM calls) - :keep",
    "decision_add": """
        INSERT OR REPLACE INTO decisions (at, task, generation, role, kind, size, attempt, attempts, previous, value_usd, arm,
                                          arms, propensities, policy, version, pinned)
        VALUES (:at, :task, :generation, :role, :kind, :size, :attempt, :attempts, :previous, :value_usd, :arm, :arms,
                :propensities, :policy, :version, :pinned)""",
    "decision_end": """
        UPDATE decisions SET outcome = :outcome, outcome_at = :outcome_at, landed = :landed, quality = :quality,
            cost_usd = :cost_usd, took_s = :took_s, evidence = :evidence
        WHERE task = :task AND generation = :generation""",
    "decision_of": "SELECT * FROM decisions WHERE task = :task AND generation = :generation",
    "decisions_landed_as": """
        SELECT d.* FROM decisions d JOIN tasks t ON t.id = d.task
        WHERE t.commit_hash = :commit AND d.outcome = 'landed' ORDER BY d.number DESC LIMIT 1""",
    "decisions_of": "SELECT * FROM decisions WHERE task = :task ORDER BY generation",
    "decisions_settled": "SELECT * FROM decisions WHERE landed IS NOT NULL ORDER BY number DESC LIMIT :limit",
    "decisions_by_arm": """
        SELECT arm, kind, count(*) AS chosen, sum(landed IS NOT NULL) AS known, sum(landed) AS landed,
            sum(pinned) AS pinned, avg(quality) AS quality, sum(cost_usd) AS cost_usd,
            avg(CASE WHEN landed IS NOT NULL THEN took_s END) AS took_s
        FROM decisions GROUP BY arm, kind ORDER BY arm, kind""",
    "decisions_trim": "DELETE FROM decisions WHERE number <= (SELECT max(number) FROM decisions) - :keep",
    "fact_get": "SELECT value FROM facts WHERE key = :key",
    "fact_put": "INSERT OR REPLACE INTO facts (key, value) VALUES (:key, :value)",
    "facts": "SELECT key, value FROM facts ORDER BY key",
    "finding_day_add": """
        INSERT INTO finding_days (day, tool, found, fixed, reopened, dismissed)
        VALUES (:day, :tool, :found, :fixed, :reopened, :dismissed)
        ON CONFLICT (day, tool) DO UPDATE SET found = found + excluded.found, fixed = fixed + excluded.fixed,
            reopened = reopened + excluded.reopened, dismissed = dismissed + excluded.dismissed""",
    "finding_days": "SELECT * FROM finding_days WHERE day >= :since ORDER BY day, tool",
    "finding_drop": "DELETE FROM findings WHERE fingerprint = :fingerprint",
    "finding_in_hands": "UPDATE findings SET state = :new WHERE task = :task AND state = :old",
    "finding_put": """
        INSERT INTO findings (fingerprint, tool, rule, state, path, line, fix, severity, message, task, reason, data,
                              first_seen, last_seen)
        VALUES (:fingerprint, :tool, :rule, :state, :path, :line, :fix, :severity, :message, :task, :reason, :data,
                :first_seen, :last_seen)
        ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, path = excluded.path, line = excluded.line,
            fix = excluded.fix, severity = excluded.severity, message = excluded.message, task = excluded.task,
            reason = excluded.reason, data = excluded.data""",
    "finding_seen": "UPDATE findings SET last_seen = :at WHERE fingerprint = :fingerprint",
    "findings_since": "SELECT path, severity FROM findings WHERE first_seen >= :since AND state = 'open'",
    "finding_days_trim": "DELETE FROM finding_days WHERE day < :before",
    "findings_trim": "DELETE FROM findings WHERE state = 'fixed' AND last_seen < :before",
    "findings": "SELECT * FROM findings ORDER BY tool, rule, path, line",
    "incident_get": "SELECT * FROM incidents WHERE number = :number",
    "incident_last": "SELECT number FROM incidents ORDER BY number DESC LIMIT 1",
    "incident_put": """
        INSERT OR REPLACE INTO incidents (number, began, ended, level, cause, data)
        VALUES (:number, :began, :ended, :level, :cause, :data)""",
    "incidents": """
        SELECT * FROM (SELECT * FROM incidents ORDER BY number DESC LIMIT :limit) ORDER BY number""",
    "incidents_abandon": "UPDATE incidents SET ended = :at WHERE ended IS NULL",
    "incidents_open": "SELECT * FROM incidents WHERE ended IS NULL ORDER BY number",
    "incidents_trim": "DELETE FROM incidents WHERE ended < :before",
    "journal_add": "INSERT INTO journal (at, kind, task, data) VALUES (:at, :kind, :task, :data)",
    "journal_last": "SELECT * FROM (SELECT * FROM journal ORDER BY seq DESC LIMIT :limit) ORDER BY seq",
    "journal_of": "SELECT * FROM journal WHERE task = :task ORDER BY seq",
    "journal_trim": "DELETE FROM journal WHERE seq <= (SELECT max(seq) FROM journal) - :keep",
    "knob_change_add": """
        INSERT INTO knob_changes (at, author, knob, old, new, why, trial, verdict, outcome, settled_at)
        VALUES (:at, :author, :knob, :old, :new, :why, :trial, :verdict, :outcome, :settled_at)""",
    "knob_change_last": "SELECT max(number) AS number FROM knob_changes",
    "knob_change_settle": """
        UPDATE knob_changes SET verdict = :verdict, outcome = :outcome, settled_at = :at WHERE number = :number""",
    "knob_changes": """
        SELECT * FROM (SELECT * FROM knob_changes ORDER BY number DESC LIMIT :limit) ORDER BY number""",
    "knob_changes_abandon": """
        UPDATE knob_changes SET verdict = 'reverted', outcome = 'the daemon ended in the middle of the trial', settled_at = :at
        WHERE verdict = 'on trial'""",
    "knob_changes_of": """
        SELECT * FROM (SELECT * FROM knob_changes WHERE knob = :knob ORDER BY number DESC LIMIT :limit) ORDER BY number""",
    "knob_changes_trim": "DELETE FROM knob_changes WHERE at < :before",
    "knob_snapshot_add": "INSERT INTO knob_snapshots (at, source, data) VALUES (:at, :source, :data)",
    "knob_snapshot_last": "SELECT max(version) AS version FROM knob_snapshots",
    "knob_snapshot_put": "UPDATE knob_snapshots SET data = :data WHERE version = :version",
    "knob_snapshots": "SELECT * FROM knob_snapshots ORDER BY version",
    "knob_snapshots_trim": "DELETE FROM knob_snapshots WHERE version <= (SELECT max(version) FROM knob_snapshots) - :keep",
    "passage_add": "INSERT INTO passages (rowid, title, text, source) VALUES (:number, :title, :text, :source)",
    "passage_document": "SELECT number FROM passage_documents WHERE origin = :origin AND source = :source",
    "passage_document_add": """
        INSERT INTO passage_documents (origin, source, digest) VALUES (:origin, :source, :digest)""",
    "passage_document_drop": "DELETE FROM passage_documents WHERE number = :number",
    "passage_documents": "SELECT number, source, digest FROM passage_documents WHERE origin = :origin",
    # Made by who needs them, and not by a migration: a Python without FTS5 opens the same ledger and has no retrieval.
    "passage_documents_make": """
        CREATE TABLE IF NOT EXISTS passage_documents (
            number INTEGER PRIMARY KEY, origin TEXT NOT NULL, source TEXT NOT NULL, digest TEXT NOT NULL,
            UNIQUE (origin, source))""",
    "passages_drop": "DELETE FROM passages WHERE rowid BETWEEN :first AND :last",
    "passages_find": """
        SELECT source, title, text, bm25(passages, 2.0, 1.0) AS score FROM passages WHERE passages MATCH :match
        ORDER BY score LIMIT :limit""",
    "passages_make": """
        CREATE VIRTUAL TABLE IF NOT EXISTS passages USING fts5(
            title, text, source UNINDEXED, tokenize = 'porter unicode61 remove_diacritics 2')""",
    "problem_add": """
        INSERT INTO problems (file, line, key, message, expected) VALUES (:file, :line, :key, :message, :expected)""",
    "problems": "SELECT * FROM problems ORDER BY file, line, key",
    "problems_clear": "DELETE FROM problems",
    "router_state_get": "SELECT data FROM router_states WHERE policy = :policy",
    "router_state_put": "INSERT OR REPLACE INTO router_states (policy, at, data) VALUES (:policy, :at, :data)",
    "spend_by_day": """
        SELECT day, sum(calls) AS calls, sum(unpriced) AS unpriced, sum(cost_usd) AS cost_usd, sum(saved_usd) AS saved_usd
        FROM spend GROUP BY day ORDER BY day""",
    "spend_by_task": "SELECT task, sum(cost_usd) AS cost_usd FROM spend GROUP BY task",
    "spend_put": """
        INSERT INTO spend (day, task, role, upstream, model, calls, unpriced, input_tokens, output_tokens,
                           cache_read_tokens, cache_write_tokens, cost_usd, collapsed, saved_usd)
        VALUES (:day, :task, :role, :upstream, :model, :calls, :unpriced, :input_tokens, :output_tokens,
                :cache_read_tokens, :cache_write_tokens, :cost_usd, :collapsed, :saved_usd)
        ON CONFLICT (day, task, role, upstream, model) DO UPDATE SET calls = calls + excluded.calls,
            unpriced = unpriced + excluded.unpriced, input_tokens = input_tokens + excluded.input_tokens,
            output_tokens = output_tokens + excluded.output_tokens,
            cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
            cost_usd = cost_usd + excluded.cost_usd, collapsed = collapsed + excluded.collapsed,
            saved_usd = saved_usd + excluded.saved_usd""",
    "task_get": "SELECT * FROM tasks WHERE id = :id",
    "task_put": """
        INSERT INTO tasks (id, state, priority, title, role, reason, generation, attempts, crashes, tries, hold, cancel,
                           not_before, file, line, digest, definition, commit_hash, feedback, resume, created_at,
                           updated_at)
        VALUES (:id, :state, :priority, :title, :role, :reason, :generation, :attempts, :crashes, :tries, :hold, :cancel,
                :not_before, :file, :line, :digest, :definition, :commit_hash, :feedback, :resume, :created_at,
                :updated_at)
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, priority = excluded.priority, title = excluded.title,
            role = excluded.role, reason = excluded.reason, generation = excluded.generation,
            attempts = excluded.attempts, crashes = excluded.crashes, resume = excluded.resume,
            tries = excluded.tries, hold = excluded.hold, cancel = excluded.cancel,
            not_before = excluded.not_before, file = excluded.file, line = excluded.line, digest = excluded.digest,
            definition = excluded.definition, commit_hash = excluded.commit_hash, feedback = excluded.feedback,
            updated_at = excluded.updated_at""",
    "task_states": "SELECT id, state FROM tasks WHERE id >= :low AND id < :high",
    "tasks": "SELECT * FROM tasks ORDER BY priority, id",
    "tasks_by_state": "SELECT * FROM tasks WHERE state = :state ORDER BY priority, id",
    "tasks_count": "SELECT state, count(*) AS n FROM tasks GROUP BY state",
    "telemetry_at": "SELECT data FROM telemetry WHERE span_s = :span_s AND at = :at",
    "telemetry_last": "SELECT at FROM telemetry WHERE span_s = :span_s ORDER BY at DESC LIMIT 1",
    "telemetry_put": "INSERT OR REPLACE INTO telemetry (span_s, at, data) VALUES (:span_s, :at, :data)",
    "telemetry_since": "SELECT at, data FROM telemetry WHERE span_s = :span_s AND at > :since ORDER BY at",
    "telemetry_trim": "DELETE FROM telemetry WHERE span_s = :span_s AND at < :before",
}
"""Every statement of the product, by name. ``:name`` marks a parameter."""

_BUSY_MS = 5_000


def _damaged(path: Path, error: sqlite3.DatabaseError) -> DamagedLedger:
    return DamagedLedger(
        f"{path} cannot be used ({error}); move it away and start again: what landed is read from git, tasks from their "
        "files, and attempts from their folders"
    )


class Store:
    """One connection, usable from any thread, one statement or transaction at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._open = False
        self._spoilt: sqlite3.Error | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for writing, creating and migrating as needed."""
        try:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            store = cls(connection)
            store._migrate()
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        return store

    @classmethod
    def open_reading(cls, path: Path) -> Self | None:
        """Open an existing file without the right to change it; None when there is none (yet)."""
        if not path.exists():
            return None
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                connection.close()
                return None  # a daemon is making it at this moment
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        return cls(connection)

    def query(self, name: str, /, **parameters: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(QUERIES[name], parameters).fetchall()

    def execute(self, name: str, /, **parameters: Any) -> int:
        """Run one statement in its own transaction (or the one around it) and return the number of rows it changed."""
        with self._lock:
            self._check()
            try:
                return self._connection.execute(QUERIES[name], parameters).rowcount
            except sqlite3.Error as error:
                self._spoilt = error if self._open else None
                raise

    def _check(self) -> None:
        """After a fault inside a transaction (a full disk ends it by itself) nothing more of it is written."""
        if self._open and self._spoilt is not None:
            raise self._spoilt

    def execute_many(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.transaction(), self._lock:
            self._check()
            self._connection.executemany(QUERIES[name], rows)

    def journal(self, published: Published) -> None:
        """Append an event that is lasting; in the transaction around it when there is one."""
        event = published.event
        if not event.lasting:
            return
        task, data = getattr(event, "task", None), json.dumps(event.to_json())
        self.execute("journal_add", at=published.at.isoformat(), kind=event.kind, task=task, data=data)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside are kept or none, whoever swallows a fault meanwhile; may be nested (the outermost decides)."""
        with self._lock:
            if self._open:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._open, self._spoilt = True, None
            try:
                yield
                self._check()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._open, self._spoilt = False, None

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
