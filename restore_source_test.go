package litestream

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// restoreMemClient is a ReplicaClient in memory that lists in random order and
// reads in short pieces.
type restoreMemClient struct {
	ReplicaClient // nil: what restore has no use for

	mu        sync.Mutex
	now       time.Time // stamp of the next file; each write adds a second
	names     map[string]bool
	snapshots map[Pos]restoreMemFile
	segments  map[Pos]restoreMemFile

	onRead func(name string) error                          // called before each open; may be nil
	onBody func(name string, r io.ReadCloser) io.ReadCloser // may be nil
	onList func()                                           // called after each listing of snapshots; may be nil
	fast   bool                                             // reads in large pieces
	open   int                                              // readers not closed
	most   int                                              // readers open at a time
}

type restoreMemFile struct {
	data []byte
	at   time.Time
}

func newRestoreMemClient() *restoreMemClient {
	return &restoreMemClient{
		now:       time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC),
		names:     map[string]bool{},
		snapshots: map[Pos]restoreMemFile{},
		segments:  map[Pos]restoreMemFile{},
	}
}

// clone returns a replica of its own with the same files.
func (c *restoreMemClient) clone() *restoreMemClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := newRestoreMemClient()
	d.names, d.snapshots, d.segments = maps.Clone(c.names), maps.Clone(c.snapshots), maps.Clone(c.segments)
	return d
}

func (c *restoreMemClient) stamp() (at time.Time) {
	at, c.now = c.now, c.now.Add(time.Second)
	return at
}

func (c *restoreMemClient) putSnapshot(generation string, index int, data []byte) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.stamp()
	c.names[generation] = true
	c.snapshots[Pos{Generation: generation, Index: index}] = restoreMemFile{data, at}
	return at
}

func (c *restoreMemClient) putSegment(pos Pos, data []byte) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.stamp()
	c.names[pos.Generation] = true
	c.segments[pos] = restoreMemFile{data, at}
	return at
}

func (c *restoreMemClient) Generations(ctx context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return restoreShuffled(slices.Collect(maps.Keys(c.names))), ctx.Err()
}

func (c *restoreMemClient) Snapshots(ctx context.Context, generation string) (SnapshotIterator, error) {
	if c.onList != nil {
		defer c.onList()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var a []SnapshotInfo
	for pos, f := range c.snapshots {
		if pos.Generation == generation {
			a = append(a, SnapshotInfo{Generation: generation, Index: pos.Index, Size: int64(len(f.data)), CreatedAt: f.at})
		}
	}
	return NewSnapshotInfoSliceIterator(restoreShuffled(a)), ctx.Err()
}

func (c *restoreMemClient) WALSegments(ctx context.Context, generation string) (WALSegmentIterator, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var a []WALSegmentInfo
	for pos, f := range c.segments {
		if pos.Generation == generation {
			a = append(a, WALSegmentInfo{Generation: generation, Index: pos.Index, Offset: pos.Offset, Size: int64(len(f.data)), CreatedAt: f.at})
		}
	}
	return NewWALSegmentInfoSliceIterator(restoreShuffled(a)), ctx.Err()
}

func (c *restoreMemClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	return c.reader(ctx, snapshotName(generation, index), c.snapshots, Pos{Generation: generation, Index: index})
}

func (c *restoreMemClient) WALSegmentReader(ctx context.Context, pos Pos) (io.ReadCloser, error) {
	return c.reader(ctx, segmentName(pos), c.segments, pos)
}

func (c *restoreMemClient) reader(ctx context.Context, name string, files map[Pos]restoreMemFile, pos Pos) (io.ReadCloser, error) {
	if c.onRead != nil {
		if err := c.onRead(name); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := files[pos]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.open++
	c.most = max(c.most, c.open)
	var r io.ReadCloser = &restoreMemReader{client: c, data: f.data}
	if c.onBody != nil {
		r = c.onBody(name, r)
	}
	return r, nil
}

type restoreMemReader struct {
	client *restoreMemClient
	data   []byte
	reads  int
	closed bool
}

func (r *restoreMemReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	if r.reads++; !r.client.fast {
		p = p[:min(len(p), 1+r.reads*r.reads*7%9000)]
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *restoreMemReader) Close() error {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	if r.closed {
		return fmt.Errorf("closed twice")
	}
	r.closed = true
	r.client.open--
	return nil
}

func restoreShuffled[T any](a []T) []T {
	rand.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
	return a
}

// restoreSource is a real database in WAL mode whose commits a test copies to a
// replica, as a DB does.
type restoreSource struct {
	t          testing.TB
	path       string
	db         *sql.DB
	client     *restoreMemClient
	generation string
	pos        Pos
	header     []byte // of the WAL of the index before
}

// newRestoreSource creates a database with one small table, WAL index 0, and
// no snapshot yet.
func newRestoreSource(t testing.TB, pageSize int) *restoreSource {
	t.Helper()
	s := &restoreSource{
		t:          t,
		path:       filepath.Join(t.TempDir(), "source.db"),
		client:     newRestoreMemClient(),
		generation: "00000000000000aa",
	}
	s.pos.Generation = s.generation
	s.db = restoreOpenSQLite(t, s.path)
	t.Cleanup(func() { s.db.Close() })
	s.exec(fmt.Sprintf("PRAGMA page_size = %d", pageSize))
	s.exec("PRAGMA journal_mode = wal")
	s.exec("PRAGMA wal_autocheckpoint = 0")
	s.exec("PRAGMA synchronous = off")
	s.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
	return s
}

func restoreOpenSQLite(t testing.TB, path string) *sql.DB {
	t.Helper()
	connector, err := sqlite.NewConnector("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	return db
}

func (s *restoreSource) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.Exec(query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

// insert commits n rows of random bytes in one transaction.
func (s *restoreSource) insert(n, size int) {
	s.t.Helper()
	s.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < ?) INSERT INTO t (v) SELECT randomblob(?) FROM c", n, size)
}

// capture stores the commits since the last capture as one segment.
func (s *restoreSource) capture() time.Time {
	s.t.Helper()
	wal, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		s.t.Fatal(err)
	}
	if len(wal) < WALHeaderSize || bytes.Equal(wal[:WALHeaderSize], s.header) {
		return time.Time{} // not restarted yet
	}
	h, err := parseWALHeader(wal)
	if err != nil {
		s.t.Fatal(err)
	}
	scan := newWALScan(startWAL(h))
	scan.feed(wal[WALHeaderSize:])
	end := scan.commit.offset
	if end <= s.pos.Offset {
		return time.Time{}
	}
	at := s.client.putSegment(s.pos, compressSegment(s.t, wal[s.pos.Offset:end]))
	s.pos.Offset = end
	return at
}

// snapshot stores the database file for the current index.
func (s *restoreSource) snapshot() time.Time {
	s.t.Helper()
	s.capture()
	b, err := os.ReadFile(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.client.putSnapshot(s.generation, s.pos.Index, compressSegment(s.t, b))
}

// backfill checkpoints all of the WAL but a small last commit, so that the next
// commit does not restart it.
func (s *restoreSource) backfill() {
	s.t.Helper()
	reader := restoreOpenSQLite(s.t, s.path)
	tx, err := reader.Begin()
	if err != nil {
		s.t.Fatal(err)
	}
	var n int
	if err := tx.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	s.insert(1, 1)
	s.exec("PRAGMA wal_checkpoint(PASSIVE)")
	if err := errors.Join(tx.Rollback(), reader.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// restart captures, checkpoints and moves to the next index.
func (s *restoreSource) restart(mode string) {
	s.t.Helper()
	s.capture()
	wal, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		s.t.Fatal(err)
	}
	if len(wal) < WALHeaderSize {
		return // nothing to restart
	}
	s.header = wal[:WALHeaderSize]
	s.exec("PRAGMA wal_checkpoint(" + mode + ")")
	s.pos.Index++
	s.pos.Offset = 0
}

// want returns what SQLite's own checkpoint makes of the database now.
func (s *restoreSource) want() []byte {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "want.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.path + suffix)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	db := restoreOpenSQLite(s.t, path)
	var busy, a, b int
	if err := db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &a, &b); err != nil || busy != 0 {
		s.t.Fatalf("checkpoint: %v, busy %d", err, busy)
	}
	if err := db.Close(); err != nil {
		s.t.Fatal(err)
	}
	out, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func restoreQuiet() RestoreOptions {
	return RestoreOptions{Logger: log.New(io.Discard, "", 0)}
}

// restoreWant restores and compares byte for byte.
func restoreWant(t testing.TB, want []byte, restore func(path string) error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored.db")
	if err := restore(path); err != nil {
		t.Fatal(err)
	}
	restoreOnly(t, path, "restored.db")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		n := 0
		for n < min(len(got), len(want)) && got[n] == want[n] {
			n++
		}
		t.Fatalf("restored %d bytes, want %d; they differ from byte %d on", len(got), len(want), n)
	}
}

// restoreOnly fails unless the directory of path holds exactly these files.
func restoreOnly(t testing.TB, path string, names ...string) {
	t.Helper()
	ents, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ent := range ents {
		got = append(got, ent.Name())
	}
	if !slices.Equal(got, names) {
		t.Fatalf("directory holds %q, want %q", got, names)
	}
}

// restoreAppendFrame appends a valid frame that continues the WAL at c.
func restoreAppendFrame(b []byte, c *walCursor, pgno, commit uint32, page []byte) []byte {
	frame := make([]byte, WALFrameHeaderSize, WALFrameHeaderSize+len(page))
	binary.BigEndian.PutUint32(frame, pgno)
	binary.BigEndian.PutUint32(frame[4:], commit)
	binary.BigEndian.PutUint32(frame[8:], c.header.salt1)
	binary.BigEndian.PutUint32(frame[12:], c.header.salt2)
	frame = append(frame, page...)
	s1, s2 := c.header.checksum(c.sum1, c.sum2, frame[:8])
	s1, s2 = c.header.checksum(s1, s2, frame[WALFrameHeaderSize:])
	binary.BigEndian.PutUint32(frame[16:], s1)
	binary.BigEndian.PutUint32(frame[20:], s2)
	if _, ok := c.next(frame); !ok {
		panic("invalid frame") // a mistake in this test's generator
	}
	return append(b, frame...)
}
