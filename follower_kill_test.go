package litestream_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
)

var followKills = flag.Int("followkills", 3, "how often the tests of killed followers and primaries kill their process")

// serveStreams serves the streams of db to the connections of a listener, until
// that is closed: a request is a position in a line; the answer is the page
// size in 4 bytes, and then records. It returns when all have ended.
func serveStreams(l net.Listener, db *litestream.DB) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			_ = serveStream(ctx, conn, db) // the client notices
		})
	}
}

func serveStream(ctx context.Context, conn net.Conn, db *litestream.DB) error {
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	pos, err := litestream.ParsePos(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	r, err := db.Stream(ctx, pos)
	if err != nil {
		return err
	}
	defer r.Close()
	ended := context.AfterFunc(ctx, func() { conn.Close() })
	defer ended()
	go func() {
		io.Copy(io.Discard, conn) // ends with the connection
		r.Close()
	}()
	if err := binary.Write(conn, binary.BigEndian, uint32(r.PageSize())); err != nil {
		return err
	}
	for {
		hdr, err := r.Next()
		if err != nil {
			return err
		}
		b, err := hdr.MarshalBinary()
		if err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		if _, err := io.Copy(conn, r); err != nil {
			return err
		}
	}
}

// dialer is a StreamClient of serveStreams at an address that may change.
type dialer struct{ addr atomic.Pointer[string] }

func (d *dialer) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	addr := d.addr.Load()
	if addr == nil {
		return nil, errors.New("there is no upstream yet")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", *addr)
	if err != nil {
		return nil, err
	}
	s := &dialedStream{conn: conn, r: bufio.NewReader(conn)}
	s.stop = context.AfterFunc(ctx, func() { conn.Close() })
	var size uint32
	_, err = fmt.Fprintf(conn, "%s\n", pos)
	if err == nil {
		err = binary.Read(s.r, binary.BigEndian, &size)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.pageSize = int(size)
	return s, nil
}

type dialedStream struct {
	conn     net.Conn
	r        *bufio.Reader
	stop     func() bool
	pageSize int
	left     int64
}

func (s *dialedStream) PageSize() int { return s.pageSize }

func (s *dialedStream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *dialedStream) Next() (*litestream.StreamRecordHeader, error) {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return nil, err
	}
	var b [litestream.StreamRecordHeaderSize]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		return nil, err
	}
	hdr := new(litestream.StreamRecordHeader)
	if err := hdr.UnmarshalBinary(b[:]); err != nil {
		return nil, err
	}
	s.left = hdr.Size
	return hdr, nil
}

func (s *dialedStream) Close() error {
	s.stop()
	s.conn.Close() // again, where the context did
	return nil
}

// mustServe serves db's streams until the test ends, and returns the address.
func mustServe(t testing.TB, db *litestream.DB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveStreams(l, db)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func init() {
	childRoles["follow"] = followChild
	childRoles["upstream"] = upstreamChild
}

// followChild follows the upstream at an address until stdin ends. It tells
//
//	pos p   applied
func followChild(args []string) error {
	d := &dialer{}
	d.addr.Store(&args[1])
	db := litestream.NewDB(args[0])
	db.Logger.SetOutput(os.Stderr)
	db.StreamClient = d
	if err := db.Open(); err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		awaitEnd()
		close(stop)
	}()
	var last litestream.Pos
	for {
		select {
		case <-stop:
			return db.Close()
		case <-time.After(time.Millisecond):
		}
		if pos := db.Pos(); pos != last {
			last = pos
			tell("pos %s", pos)
		}
	}
}

// upstreamChild is a primary that writes until it is killed. It tells
//
//	addr a   where it serves streams
//	row n    committed
func upstreamChild(args []string) error {
	db := litestream.NewDB(args[0])
	db.Logger.SetOutput(os.Stderr)
	db.MonitorDelayInterval = time.Millisecond
	db.MinCheckpointPageN = 50
	if err := db.Open(); err != nil {
		return err
	}
	host, err := childHost(args[0])
	if err != nil {
		return err
	}
	if _, err := host.Exec("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, s TEXT)"); err != nil {
		return err
	}
	if err := db.Sync(ctx); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go serveStreams(l, db)
	tell("addr %s", l.Addr())
	for {
		r, err := host.Exec("INSERT INTO t(s) VALUES (hex(randomblob(?)))", rand.IntN(3000))
		if err != nil {
			return err
		}
		n, err := r.LastInsertId()
		if err != nil {
			return err
		}
		tell("row %d", n)
	}
}

// Wherever a follower is killed, it goes on and ends up equal.
func TestFollower_Killed(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	addr := mustServe(t, primary)
	path := filepath.Join(dir, "follower", "db")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	stop, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(written)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			query := "INSERT INTO t(s) VALUES (hex(randomblob(1000)))"
			switch {
			case n%500 == 499:
				query = "VACUUM"
			case n%50 == 49:
				query = "DELETE FROM t WHERE n % 3 = 0 OR n < (SELECT max(n) - 200 FROM t)" // or VACUUM would take ever longer
			}
			if _, err := host.Exec(query); err != nil {
				t.Errorf("%s: %v", query, err)
				return
			}
		}
	}()
	for range *followKills {
		c := startChild(t, "follow", path, addr)
		for range 1 + rand.IntN(30) {
			c.mustHear(t, "pos")
		}
		c.kill()
	}
	close(stop)
	<-written
	d := &dialer{}
	d.addr.Store(&addr)
	f := newFollower(t, filepath.Dir(path), d)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	mustBeIntact(t, openHost(t, path))
}

// Wherever a primary is killed, its follower goes on with what it comes back
// with.
func TestFollower_PrimaryKilled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "primary", "db")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	d := &dialer{}
	f := newFollower(t, filepath.Join(dir, "follower"), d)
	mustOpen(t, f)
	for range *followKills {
		c := startChild(t, "upstream", path)
		addr := c.mustHear(t, "addr")
		d.addr.Store(&addr)
		records := f.Stats().Follower.LastRecord
		for n := 1 + rand.IntN(100); n > 0 || f.Stats().Follower.LastRecord.Equal(records); n-- {
			c.mustHear(t, "row")
		}
		c.kill()
	}
	primary := newDB(t, filepath.Dir(path))
	mustOpen(t, primary)
	addr := mustServe(t, primary)
	d.addr.Store(&addr)
	host := openHost(t, path)
	mustExec(t, host, "INSERT INTO t(s) VALUES ('after the last kill')")
	mustSync(t, primary)
	mustFollow(t, primary, f)
	mustBeIntact(t, openHost(t, f.Path()))
	mustEqualRestore(t, primary, primary.Replicas[0].Client())
}

// noSnapshots is an upstream that is reached only by who goes on behind what it
// has.
type noSnapshots struct{ litestream.StreamClient }

func (u noSnapshots) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	if pos.IsZero() {
		return nil, errInjected
	}
	return u.StreamClient.Stream(ctx, pos)
}

// A local write was found, and the process is killed before the snapshot that
// heals it: the next start takes that snapshot, and does not go on where the
// follower was.
func TestFollower_KilledAfterALocalWrite(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.StreamClient = noSnapshots{primary}
	mustOpen(t, f)
	mustAwait(t, "the follower has a stream", func() bool { return f.Stats().Follower.Streams > 0 && f.SQLDB() != nil })
	stray := openHost(t, f.Path())
	mustExec(t, stray, "INSERT INTO t (n, s) VALUES (1000, 'stray')")
	mustExec(t, host, "CREATE TABLE u (x)")
	if err := primary.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, "the write is found", func() bool { return errors.Is(f.Stats().LastError, errInjected) })

	// What a process leaves that is killed now.
	killed := filepath.Join(dir, "killed")
	if err := os.CopyFS(killed, os.DirFS(filepath.Dir(f.Path()))); err != nil {
		t.Fatal(err)
	}
	again := newFollower(t, killed, primary)
	mustOpen(t, again)
	mustExec(t, host, "INSERT INTO u VALUES (1)")
	mustFollow(t, primary, again)
	if n := again.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
	mustBeIntact(t, openHost(t, again.Path(), "query_only(1)"))
}
