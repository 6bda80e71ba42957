package litestream_test

import (
	"io"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// overHTTP serves the databases, with frequent heartbeats, until the test ends.
func overHTTP(t testing.TB, dbs map[string]*litestream.DB) func(name string) *streamhttp.Client {
	t.Helper()
	handler := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) { return dbs[name], dbs[name] != nil })
	handler.HeartbeatInterval = 10 * time.Millisecond
	handler.Logger = testLogger(t)
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		handler.Close()
		server.Close()
	})
	return func(name string) *streamhttp.Client {
		client := streamhttp.NewClient(server.URL, name)
		client.HTTPClient = server.Client()
		return client
	}
}

// A snapshot that takes longer than a client bears silence reaches its
// follower: the headers, and heartbeats, come before it.
func TestStream_SlowSnapshotOverHTTP(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	mustExec(t, host, "INSERT INTO t (s) VALUES ('before')")
	mustSync(t, primary)
	client := overHTTP(t, map[string]*litestream.DB{"app": primary})("app")
	client.SilenceTimeout = 100 * time.Millisecond

	release := sync.OnceFunc(litestream.HoldSnapshotSlot()) // as a snapshot of another, large database does
	defer release()
	f := newFollower(t, filepath.Join(dir, "follower"), client)
	mustOpen(t, f)
	var stream uint64
	var first time.Time
	mustAwait(t, "a stream outlasts the limit of silence", func() bool {
		st := f.Stats().Follower
		if st.Streams != stream || first.IsZero() {
			stream, first = st.Streams, st.LastRecord
		}
		return st.LastRecord.Sub(first) > 3*client.SilenceTimeout
	})
	if st := f.Stats().Follower; st.Upstream != primary.Pos() || !f.Pos().IsZero() {
		t.Errorf("before the snapshot: at %s of %s", f.Pos(), st.Upstream)
	}
	mustExec(t, host, "INSERT INTO t (s) VALUES ('meanwhile')")
	if err := primary.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Errorf("the WAL is pinned: %v", err)
	}
	mustExec(t, host, "INSERT INTO t (s) VALUES ('after')")
	release()
	mustFollow(t, primary, f)
	mustBeIntact(t, openHost(t, f.Path(), "query_only(1)"))
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots", n)
	}
}

// A captured segment that was damaged on disk, wherever, costs the followers
// that come to it a snapshot, and does not stop them for ever.
func TestStream_CapturedSegmentIsDamaged(t *testing.T) {
	for _, part := range []string{"payload", "header", "end mark", "length"} {
		t.Run(part, func(t *testing.T) {
			dir := t.TempDir()
			primary, host := newPrimary(t, filepath.Join(dir, "primary"))
			f := newFollower(t, filepath.Join(dir, "follower"), primary)
			mustOpen(t, f)
			mustFollow(t, primary, f)
			mustExec(t, host, "INSERT INTO t (s) VALUES ('a')")
			mustSync(t, primary)
			mustCatchUp(t, primary, f)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			pos := primary.Pos()
			mustExec(t, host, "INSERT INTO t (s) VALUES ('b')")
			mustSync(t, primary)
			name := filepath.Join(primary.ShadowWALDir(pos.Generation), litestream.FormatIndex(pos.Index), litestream.FormatOffset(pos.Offset)+litestream.WALSegmentExt)
			b := readFile(t, name)
			switch part {
			case "payload":
				b[len(b)/2] ^= 0x20
			case "header":
				b[0] ^= 0x20
			case "end mark":
				b[len(b)-1] ^= 0x20
			case "length":
				b = b[:len(b)/2]
			}
			writeFile(t, name, b)
			mustOpen(t, f)
			mustAwait(t, "a new generation", func() bool { return primary.Pos().Generation != pos.Generation })
			mustFollow(t, primary, f)
			mustBeIntact(t, openHost(t, f.Path(), "query_only(1)"))
			mustSync(t, primary)
			mustEqualRestore(t, primary, primary.Replicas[0].Client())
		})
	}
}

// What makes a stream impossible is known when it is asked for, and over HTTP
// before the headers.
func TestStream_ErrorsOfTheCall(t *testing.T) {
	dir := t.TempDir()
	primary, _ := newPrimary(t, filepath.Join(dir, "primary"))
	closed, _ := newPrimary(t, filepath.Join(dir, "closed"))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	empty := newDB(t, filepath.Join(dir, "empty"))
	mustOpen(t, empty)
	follower := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, follower)
	dbs := map[string]*litestream.DB{"closed": closed, "empty": empty, "follower": follower}
	client := overHTTP(t, dbs)
	for name, want := range map[string]error{
		"closed": litestream.ErrDBClosed, "empty": litestream.ErrNoGeneration, "follower": litestream.ErrFollower, "other": streamhttp.ErrNotFound,
	} {
		_, err := client(name).Stream(ctx, litestream.Pos{})
		if db := dbs[name]; db != nil {
			mustErrorIs(t, err, streamhttp.ErrUnavailable)
			_, err = db.Stream(ctx, litestream.Pos{})
		}
		mustErrorIs(t, err, want)
	}
	mustFollow(t, primary, follower)
}

// A primary that is closed while a follower waits for its snapshot ends the
// stream in good order, and the follower comes back.
func TestStream_PrimaryClosesDuringTheSnapshotOverHTTP(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	mustExec(t, host, "INSERT INTO t (s) VALUES ('before')")
	mustSync(t, primary)
	client := overHTTP(t, map[string]*litestream.DB{"app": primary})("app")
	release := sync.OnceFunc(litestream.HoldSnapshotSlot())
	defer release()
	r, err := client.Stream(ctx, litestream.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if hdr, err := r.Next(); err != nil || hdr.Size != 0 || hdr.Pos() != primary.Pos() {
		t.Fatalf("first record is %+v, %v; want a heartbeat", hdr, err)
	}
	if err := primary.Close(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = r.Next()
	}
	if err != io.EOF {
		t.Errorf("next: %v", err)
	}
	release()
	mustOpen(t, primary)
	f := newFollower(t, filepath.Join(dir, "follower"), client)
	mustOpen(t, f)
	mustFollow(t, primary, f)
}
