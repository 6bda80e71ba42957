package litestream_test

import (
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// A snapshot that takes longer than a client bears silence reaches its
// follower: the headers, and heartbeats, come before it.
func TestStream_SlowSnapshotOverHTTP(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	mustExec(t, host, "INSERT INTO t (s) VALUES ('before')")
	mustSync(t, primary)
	handler := streamhttp.NewHandler(func(string) (litestream.StreamClient, bool) { return primary, true })
	handler.HeartbeatInterval = 10 * time.Millisecond
	handler.Logger = testLogger(t)
	server := httptest.NewServer(handler)
	defer server.Close()
	defer handler.Close()
	client := streamhttp.NewClient(server.URL, "app")
	client.HTTPClient = server.Client()
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
