package litestream

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// A state that is no longer true does not come back with a power loss.
func TestFollowerState_RemovalIsDurable(t *testing.T) {
	for seed := range uint64(30) {
		dir := t.TempDir()
		name := filepath.Join(dir, "follower")
		if err := os.WriteFile(name, []byte("state"), 0o600); err != nil {
			t.Fatal(err)
		}
		crash := faultfs.NewCrash(fsys.OS, dir)
		if err := errors.Join(removeIfExists(crash, name), crash.Crash(seed)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("seed %d: it is back: %v", seed, err)
		}
	}
}

func TestProgressed(t *testing.T) {
	at := func(generation string, index int) Pos { return Pos{Generation: generation, Index: index} }
	const a, b = "00000000000000aa", "00000000000000bb"
	for _, test := range []struct {
		name     string
		from, to Pos
		current  time.Duration
		want     bool
	}{
		{"nothing", Pos{}, Pos{}, 0, false},
		{"nothing new", at(a, 1), at(a, 1), time.Second, false},
		{"went on", at(a, 1), at(a, 2), 0, true},
		{"first snapshot", Pos{}, at(a, 1), 0, false},
		{"snapshot of another generation", at(a, 1), at(b, 2), 0, false},
		{"what was applied is lost", at(a, 1), Pos{}, time.Second, false},
		{"snapshot that was kept", Pos{}, at(a, 1), streamSettled, true},
		{"idle for long", at(a, 1), at(a, 1), time.Hour, true},
		{"modified after long", at(a, 1), Pos{}, time.Hour, true},
	} {
		if got := progressed(test.from, test.to, test.current); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// streamFunc is a StreamClient.
type streamFunc func() StreamReader

func (fn streamFunc) Stream(context.Context, Pos) (StreamReader, error) { return fn(), nil }

// An upstream is asked ever more rarely by a follower that cannot apply what it
// sends, though that is a snapshot or a heartbeat each time.
func TestFollower_AsksLessOftenWhileItFails(t *testing.T) {
	stream, _ := batchStream(t)
	beat, err := (&StreamRecordHeader{Type: StreamRecordTypeWALSegment, Generation: batchGeneration}).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	full := faultfs.New(fsys.OS)
	full.FailOn(faultfs.Write, faultfs.ENOSPC)
	for name, test := range map[string]struct {
		stream []byte
		fs     fsys.FS
		setup  func(path string) error
		want   error
	}{
		"page size": {stream, fsys.OS, func(path string) error {
			host, err := sql.Open("sqlite", path)
			if err != nil {
				return err
			}
			_, err = host.Exec("PRAGMA page_size=4096; PRAGMA journal_mode=WAL; CREATE TABLE t (x)")
			return errors.Join(err, host.Close())
		}, ErrPageSizeMismatch},
		"wal of another database": {slices.Concat(beat, stream), fsys.OS, func(path string) error {
			return os.WriteFile(path+"-wal", []byte("x"), 0o600)
		}, fs.ErrExist},
		"disk full":       {stream, full, func(string) error { return nil }, faultfs.ENOSPC},
		"heartbeats only": {beat, fsys.OS, func(string) error { return nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			db := NewDB(filepath.Join(t.TempDir(), "db"))
			db.Logger, db.fs = nil, test.fs
			if err := errors.Join(os.Mkdir(db.MetaPath(), 0o700), test.setup(db.Path())); err != nil {
				t.Fatal(err)
			}
			calls := 0
			db.StreamClient = streamFunc(func() StreamReader {
				calls++
				return &bytesStream{r: bytes.NewReader(test.stream), pageSize: 512}
			})
			f := newFollower(db)
			db.follower.Store(f)
			var waits []time.Duration
			f.sleep = func(_ context.Context, d time.Duration) bool {
				if err := db.errs.lastError(); !errors.Is(err, test.want) {
					t.Errorf("failed with %v, want %v", err, test.want)
				}
				waits = append(waits, d)
				return len(waits) < 12
			}
			f.run(context.Background())
			if err := f.stop(); err != nil {
				t.Error(err)
			}
			if calls != len(waits) {
				t.Errorf("%d calls, %d pauses", calls, len(waits))
			}
			for i, wait := range waits {
				if least := min(minBackoff<<i, maxBackoff) / 2; wait < least {
					t.Errorf("pause %d is %s, want %s or more", i, wait, least)
				}
			}
		})
	}
}

func TestStoredState_Usable(t *testing.T) {
	here, other := bootID{1}, bootID{2}
	at := followerState{pos: Pos{Generation: batchGeneration}}
	for _, test := range []struct {
		name  string
		state storedState
		boot  bootID
		want  bool
	}{
		{"none", storedState{clean: true, boot: here}, here, false},
		{"closed", storedState{at, true, bootID{}}, here, true},
		{"closed, the system does not tell", storedState{at, true, bootID{}}, bootID{}, true},
		{"killed", storedState{at, false, here}, here, true},
		{"power loss", storedState{at, false, other}, here, false},
		{"killed, the system does not tell", storedState{at, false, bootID{}}, bootID{}, false},
		{"killed, the system tells now", storedState{at, false, bootID{}}, here, false},
	} {
		if got := test.state.usable(test.boot); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// Calls that began before a Close and go on after the next Open belong to the
// follower that was closed.
func TestFollower_CallsOutliveClose(t *testing.T) {
	primary := NewDB(filepath.Join(t.TempDir(), "primary"))
	host, err := sql.Open("sqlite", primary.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Exec("PRAGMA journal_mode=WAL; CREATE TABLE t (x)"); err != nil {
		t.Fatal(err)
	}
	db := NewDB(filepath.Join(t.TempDir(), "db"))
	primary.Logger, db.Logger, db.StreamClient = nil, nil, primary
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(primary.Open())
	defer primary.Close()
	must(db.Open())
	defer db.Close()
	f := db.follower.Load()
	must(f.waitPos(ctx, primary.Pos()))
	must(db.Close())
	if err := f.checkpoint(ctx, CheckpointModeTruncate); !errors.Is(err, ErrDBClosed) {
		t.Errorf("checkpoint: %v", err)
	}
	if db.pool.Load() != nil || f.conn.c != nil {
		t.Error("a closed follower has opened a connection")
	}
	must(db.Open())
	if err := f.waitPos(ctx, Pos{Generation: "0123456789abcdef"}); !errors.Is(err, ErrDBClosed) {
		t.Errorf("wait: %v", err)
	}
}
