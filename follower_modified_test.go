package litestream_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
)

// upstreamSwitch is an upstream that is down while it is nil.
type upstreamSwitch struct {
	db    atomic.Pointer[litestream.DB]
	calls atomic.Int64
}

func (u *upstreamSwitch) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	u.calls.Add(1)
	if db := u.db.Load(); db != nil {
		return db.Stream(ctx, pos)
	}
	return nil, errInjected
}

// A local write is found whenever the follower was open meanwhile, also when no
// change of the upstream came between its start, the write and its end. No step
// runs a checkpoint: that would open the follower's connection.
func TestFollower_LocalWriteIsFoundWhenever(t *testing.T) {
	write := func(t *testing.T, f *litestream.DB) {
		t.Helper()
		stray := openHost(t, f.Path())
		mustExec(t, stray, "INSERT INTO t (n, s) VALUES (1000, 'stray')")
	}
	reopen := func(t *testing.T, f *litestream.DB) {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, f)
	}
	for name, test := range map[string]struct {
		steps     func(t *testing.T, f *litestream.DB, up *upstreamSwitch)
		snapshots uint64 // since the last opening
	}{
		"after the first snapshot": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			write(t, f)
		}, 2},
		"while the upstream is down": {func(t *testing.T, f *litestream.DB, up *upstreamSwitch) {
			primary := up.db.Swap(nil)
			reopen(t, f)
			write(t, f)
			up.db.Store(primary)
		}, 1},
		"before it is closed": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			write(t, f)
			reopen(t, f)
		}, 1},
		"before it is closed, the upstream never reached": {func(t *testing.T, f *litestream.DB, up *upstreamSwitch) {
			primary := up.db.Swap(nil)
			reopen(t, f)
			write(t, f)
			up.db.Store(primary)
			reopen(t, f)
		}, 1},
		"never": {func(t *testing.T, f *litestream.DB, _ *upstreamSwitch) {
			reopen(t, f)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			primary, host := newPrimary(t, filepath.Join(dir, "primary"))
			up := &upstreamSwitch{}
			up.db.Store(primary)
			f := newFollower(t, filepath.Join(dir, "follower"), up)
			checkAtEnd(t, f)
			mustOpen(t, f)
			mustCatchUp(t, primary, f)
			test.steps(t, f, up)
			mustExec(t, host, "CREATE TABLE u (x)") // does not touch the page of t
			mustFollow(t, primary, f)
			mustBeIntact(t, openHost(t, f.Path(), "query_only(1)"))
			if n := f.Stats().Follower.Snapshots; n != test.snapshots {
				t.Errorf("%d snapshots, want %d", n, test.snapshots)
			}
		})
	}
}

// A file that takes the database's place is not taken for it, also when the
// follower is closed before it looks.
func TestFollower_FileIsReplacedBeforeItIsClosed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced")
	}
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	other := filepath.Join(dir, "other")
	stray := openHost(t, other)
	mustExec(t, stray, "CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT); INSERT INTO t (s) VALUES ('other')")
	if err := errors.Join(stray.Close(), os.Rename(other, f.Path()), f.Close()); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, f)
	mustExec(t, host, "CREATE TABLE u (x)")
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
}

// A power loss takes back what the primary and its follower had, the primary
// further than the follower's database. What the primary writes instead is not
// applied to pages of what it lost.
func TestFollower_PowerLossTakesThePrimaryBack(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	mustExec(t, host, "CREATE TABLE lost (x); CREATE TABLE instead (x)")
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// The follower's state is of here,
	state := filepath.Join(f.MetaPath(), "follower")
	mustOpen(t, f)
	mustExec(t, host, "INSERT INTO t (s) VALUES ('early')")
	mustCatchUp(t, primary, f)
	early := readFile(t, state)

	// the primary falls back to here,
	mustExec(t, host, "INSERT INTO t (s) VALUES ('kept')")
	mustCatchUp(t, primary, f)
	kept := primary.Pos()
	if err := errors.Join(host.Close(), primary.Close(), os.CopyFS(filepath.Join(dir, "kept"), os.DirFS(filepath.Dir(primary.Path())))); err != nil {
		t.Fatal(err)
	}

	// and this is durable in the follower's database.
	mustOpen(t, primary)
	host = openHost(t, primary.Path())
	mustExec(t, host, "INSERT INTO lost VALUES (1)")
	mustCatchUp(t, primary, f)
	if err := errors.Join(f.Close(), host.Close(), primary.Close(), os.WriteFile(state, early, 0o600), litestream.RebootFollowerState(state)); err != nil {
		t.Fatal(err)
	}

	again := newDB(t, filepath.Join(dir, "kept"))
	mustOpen(t, again)
	if got := again.Pos(); got != kept {
		t.Fatalf("the primary comes back at %s, want %s", got, kept)
	}
	host = openHost(t, again.Path())
	mustExec(t, host, "INSERT INTO instead VALUES (2)")
	f.StreamClient = again
	mustOpen(t, f)
	mustFollow(t, again, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
}

// Before the first record there is nothing to checkpoint, and nothing that
// decides about the page size.
func TestFollower_CheckpointBeforeTheFirstRecord(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"no file": func(*testing.T, string) {},
		"empty file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a database": func(t *testing.T, path string) { mustExec(t, openHost(t, path), "CREATE TABLE mine (x)") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			primary, host := newPrimary(t, filepath.Join(dir, "primary"))
			up := &upstreamSwitch{}
			f := newFollower(t, filepath.Join(dir, "follower"), up)
			checkAtEnd(t, f)
			prepare(t, f.Path())
			mustOpen(t, f)
			for range 2 {
				if err := f.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
					t.Error(err)
				}
			}
			up.db.Store(primary)
			mustExec(t, host, "INSERT INTO t (s) VALUES ('a')")
			mustFollow(t, primary, f)
		})
	}
}

// A process that was killed while it built the database leaves a file of its
// size. A start that comes later removes it.
func TestFollower_UnfinishedSnapshotIsRemoved(t *testing.T) {
	dir := t.TempDir()
	primary, _ := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	checkAtEnd(t, f)
	const left = ".0123456789abcdef-1.tmp"
	for _, suffix := range []string{left, "-other" + left} {
		if err := os.WriteFile(f.Path()+suffix, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	young := f.Path() + ".fedcba9876543210-1.tmp"
	if err := os.WriteFile(young, nil, 0o600); err != nil { // perhaps somebody restores
		t.Fatal(err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	for _, name := range []string{f.Path() + left, f.Path() + "-other" + left} {
		if err := os.Chtimes(name, hourAgo, hourAgo); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, f)
	mustFollow(t, primary, f)
	names, err := filepath.Glob(filepath.Join(filepath.Dir(f.Path()), "*.tmp"))
	slices.Sort(names)
	if want := []string{f.Path() + "-other" + left, young}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q is left, want %q; %v", names, want, err)
	}
}
