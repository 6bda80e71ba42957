package litestream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"reflect"
	"strconv"
	"time"
)

// Names of the files and directories that replicas and meta directories share.
const (
	MetaDirSuffix = "-litestream" // appended to the database's path

	WALDirName    = "wal"
	WALExt        = ".wal"
	WALSegmentExt = ".wal.lz4"
	SnapshotExt   = ".snapshot.lz4"

	// GenerationNameLen is the length of a generation's name in hex digits.
	GenerationNameLen = 16
)

// Checkpoint modes, as SQLite names them. See
// https://www.sqlite.org/pragma.html#pragma_wal_checkpoint.
const (
	CheckpointModePassive  = "PASSIVE"
	CheckpointModeFull     = "FULL"
	CheckpointModeRestart  = "RESTART"
	CheckpointModeTruncate = "TRUNCATE"
)

// MaxIndex is the highest WAL index of a generation. The database begins a
// new generation instead of going beyond it.
const MaxIndex = 0x7FFFFFFF

// BusyTimeout bounds how long the library waits for a lock that another
// connection of the database holds.
const BusyTimeout = 1 * time.Second

// LogWriter is where a Logger that the host did not set writes. Assign
// [io.Discard], or nil, before constructing a DB or Replica for silence.
var LogWriter io.Writer = os.Stdout

// LogFlags are the flags of loggers that the host did not set, as in [log.New].
var LogFlags = 0

// Tracef receives the routine steps that loggers leave out. Assign it before
// opening a database; it must be safe for concurrent use. Nil ignores them.
var Tracef = func(format string, a ...any) {}

func tracef(format string, a ...any) {
	if Tracef != nil {
		Tracef(format, a...)
	}
}

// newLogger returns a logger for a host that did not set one.
func newLogger(prefix string) *log.Logger {
	w := LogWriter
	if w == nil {
		w = io.Discard
	}
	return log.New(w, prefix, LogFlags)
}

// errNotOpen reports a call that needs an open DB.
var errNotOpen = fmt.Errorf("%w, or not opened yet", ErrDBClosed)

// errNoClient reports a client that is nil.
var errNoClient = errors.New("no replica client")

// isNil reports whether v is nil, or a nil pointer, which an interface hides.
func isNil(v any) bool {
	rv := reflect.ValueOf(v)
	return !rv.IsValid() || rv.Kind() == reflect.Pointer && rv.IsNil()
}

// Errors of opening and capturing.
var (
	// ErrDBClosed reports a call on a database that was closed or never opened.
	ErrDBClosed = errors.New("database closed")

	// ErrDatabaseLocked reports a second manager: another DB, in this process
	// or another, already streams the same database.
	ErrDatabaseLocked = errors.New("database is already managed")

	// ErrNotWAL reports a database that is not in WAL mode. The library does
	// not convert it: execute PRAGMA journal_mode=WAL once from the host.
	ErrNotWAL = errors.New("database is not in WAL mode")

	// ErrDatabaseReplaced reports that another file took the database's place
	// while its old -wal is still beside it. Replaying that WAL would corrupt
	// the new file, so the library waits until it is gone.
	ErrDatabaseReplaced = errors.New("database file was replaced")

	// ErrCheckpointBusy reports that other connections kept a checkpoint from
	// completing within BusyTimeout. Nothing is lost; try again later.
	ErrCheckpointBusy = errors.New("checkpoint is busy")
)

// Errors of replicas and restores.
var (
	ErrNoGeneration      = errors.New("no generation available")
	ErrGenerationChanged = errors.New("generation changed")
	ErrNoSnapshots       = errors.New("no snapshots available")
	ErrNoWALSegments     = errors.New("no wal segments available")

	// ErrChecksumMismatch reports replica data that is not what the database
	// wrote. A *ChecksumError that matches it names the file.
	ErrChecksumMismatch = errors.New("invalid replica, checksum mismatch")

	// ErrReplicaMoved reports a replica to which another database has written
	// since this one did, above all a follower that was promoted. This one
	// writes nothing to it any more. See "Promotion" in the package's
	// documentation.
	ErrReplicaMoved = errors.New("replica has moved on: another primary writes to it")
)

// Errors of streams and followers.
var (
	// ErrStreamTooSlow ends a stream whose reader is so far behind that the
	// primary does not keep what it needs any longer. The next stream begins
	// with a snapshot.
	ErrStreamTooSlow = errors.New("reader of the stream is too far behind")

	// ErrFollower reports a call that makes sense for a primary alone.
	ErrFollower = errors.New("database is a follower")

	// ErrFollowerModified reports that something else than the follower wrote
	// to the follower's database. The follower replaces the change by a
	// snapshot of the upstream's database.
	ErrFollowerModified = errors.New("follower's database was modified locally")

	// ErrPageSizeMismatch reports that the upstream's database has another page
	// size than the follower's file. It cannot be changed in place: close all
	// connections to the follower's database, close the follower, remove the
	// file with its -wal and -shm, and open the follower again.
	ErrPageSizeMismatch = errors.New("page size of the upstream differs from that of the database file")
)

// ChecksumError reports which data failed verification. It matches
// ErrChecksumMismatch with errors.Is.
type ChecksumError struct {
	Path string // file name, or the replica's name of the snapshot or segment
	Pos  Pos    // where the first bad byte may lie; zero if that is not known
	Err  error  // what is wrong with it
}

func (e *ChecksumError) Error() string {
	s := e.Path + ": checksum mismatch"
	if !e.Pos.IsZero() {
		s += " at " + e.Pos.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns ErrChecksumMismatch and the underlying cause.
func (e *ChecksumError) Unwrap() []error { return []error{ErrChecksumMismatch, e.Err} }

// ReplicaClient stores the snapshots and WAL segments of one database
// somewhere else. Implementations must be safe for concurrent use, and must not
// retain a reader after they return. Once its context ends a call returns
// promptly, with an error that matches the context's unless its work was done;
// a reader or iterator that the context cuts short ends with an error, never as
// if it were whole. Package replicatest checks all of this.
//
// A write that returned nil is durable, and visible to every later call of any
// client; a write that failed leaves the old data, the new data, or none, and
// never a part (I4). Names are validated: a generation for which
// [IsGenerationName] is false, or a negative index or offset, is an error.
type ReplicaClient interface {
	// Type names the kind of storage, such as "file".
	Type() string

	// Generations lists the names of all generations, in any order.
	Generations(ctx context.Context) ([]string, error)

	// DeleteGeneration deletes everything of a generation. Deleting one that
	// does not exist is not an error.
	DeleteGeneration(ctx context.Context, generation string) error

	// Snapshots iterates over a generation's snapshots, in any order. A
	// generation that does not exist has none.
	Snapshots(ctx context.Context, generation string) (SnapshotIterator, error)

	// WriteSnapshot stores an LZ4-compressed snapshot, replacing one of the
	// same index. It reads r to io.EOF; an error from r fails the write.
	WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (SnapshotInfo, error)

	// DeleteSnapshot deletes a snapshot. Deleting one that does not exist is
	// not an error.
	DeleteSnapshot(ctx context.Context, generation string, index int) error

	// SnapshotReader returns the LZ4-compressed snapshot. The caller closes
	// it. The error matches os.ErrNotExist if there is no such snapshot.
	SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error)

	// WALSegments iterates over a generation's WAL segments, in any order. A
	// generation that does not exist has none.
	WALSegments(ctx context.Context, generation string) (WALSegmentIterator, error)

	// WriteWALSegment stores an LZ4-compressed WAL segment that begins at pos,
	// replacing one of the same position. It reads r to io.EOF; an error from
	// r fails the write.
	WriteWALSegment(ctx context.Context, pos Pos, r io.Reader) (WALSegmentInfo, error)

	// DeleteWALSegments deletes segments. Those that do not exist are skipped.
	DeleteWALSegments(ctx context.Context, a []Pos) error

	// WALSegmentReader returns the LZ4-compressed segment that begins at pos.
	// The caller closes it. The error matches os.ErrNotExist if there is none.
	WALSegmentReader(ctx context.Context, pos Pos) (io.ReadCloser, error)
}

// IsGenerationName reports whether s is 16 lowercase hex digits.
func IsGenerationName(s string) bool {
	return len(s) == GenerationNameLen && isLowerHex(s)
}

// newGenerationName draws a random generation name.
func newGenerationName() string {
	var b [GenerationNameLen / 2]byte
	rand.Read(b[:]) // never fails: see crypto/rand
	return hex.EncodeToString(b[:])
}

// FormatIndex returns the 16 hex digits that name a WAL index, which must not
// be negative.
func FormatIndex(index int) string { return fmt.Sprintf("%016x", index) }

// ParseIndex parses the 16 lowercase hex digits of a WAL index.
func ParseIndex(s string) (int, error) {
	v, err := parseHex16(s, math.MaxInt)
	if err != nil {
		return 0, fmt.Errorf("parse index %q: %w", s, err)
	}
	return int(v), nil
}

// FormatOffset returns the 16 hex digits that name a byte offset in a WAL,
// which must not be negative.
func FormatOffset(offset int64) string { return fmt.Sprintf("%016x", offset) }

// ParseOffset parses the 16 lowercase hex digits of a byte offset.
func ParseOffset(s string) (int64, error) {
	v, err := parseHex16(s, math.MaxInt64)
	if err != nil {
		return 0, fmt.Errorf("parse offset %q: %w", s, err)
	}
	return v, nil
}

func parseHex16(s string, limit int64) (int64, error) {
	if len(s) != 16 || !isLowerHex(s) {
		return 0, errors.New("want 16 lowercase hex digits")
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, err
	}
	if v > uint64(limit) {
		return 0, fmt.Errorf("above %d", limit)
	}
	return int64(v), nil
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
