package streamhttp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

const (
	testGeneration = "0123456789abcdef"
	testPageSize   = 4096
)

func testPos(index int, offset int64) litestream.Pos {
	return litestream.Pos{Generation: testGeneration, Index: index, Offset: offset}
}

// record is what a fake upstream gives, or a Client received.
type record struct {
	hdr  litestream.StreamRecordHeader
	body []byte
}

func snapshot(index, size int) record {
	return newRecord(litestream.StreamRecordTypeSnapshot, testPos(index, 0), size)
}

func segment(index int, offset int64, size int) record {
	return newRecord(litestream.StreamRecordTypeWALSegment, testPos(index, offset), size)
}

func newRecord(typ int, pos litestream.Pos, size int) record {
	r := record{
		hdr: litestream.StreamRecordHeader{
			Type: typ, Generation: pos.Generation, Index: pos.Index, Offset: pos.Offset, Size: int64(size),
		},
		body: make([]byte, size),
	}
	for i := range r.body {
		r.body[i] = byte(i*7 + size + pos.Index + i>>8)
	}
	return r
}

func heartbeat(pos litestream.Pos) record {
	return newRecord(litestream.StreamRecordTypeWALSegment, pos, 0)
}

// encode returns the bytes of records as they are on the wire.
func encode(t testing.TB, records ...record) []byte {
	t.Helper()
	var b []byte
	for _, r := range records {
		hdr, err := r.hdr.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		b = append(append(b, hdr...), r.body...)
	}
	return b
}

// upstream is a StreamClient that a test feeds.
type upstream struct {
	records  chan record // closed: the stream ends
	pageSize int
	failure  error // of Stream
	end      error // of Next once records is closed; nil means io.EOF
	cutAt    int   // bytes of a body after which its reader ends, if positive

	asked chan litestream.Pos // receives the positions asked for
	open  atomic.Int32        // readers
}

func newUpstream() *upstream {
	return &upstream{records: make(chan record), pageSize: testPageSize, asked: make(chan litestream.Pos, 100)}
}

func (u *upstream) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	u.asked <- pos
	if u.failure != nil {
		return nil, u.failure
	}
	u.open.Add(1)
	return &upstreamReader{u: u, ctx: ctx}, nil
}

// give gives the records to the stream that runs.
func (u *upstream) give(t testing.TB, records ...record) {
	t.Helper()
	for _, r := range records {
		select {
		case u.records <- r:
		case <-time.After(testTimeout):
			t.Fatal("nobody takes the records")
		}
	}
}

type upstreamReader struct {
	u      *upstream
	ctx    context.Context
	body   io.Reader
	closed bool
}

func (r *upstreamReader) PageSize() int { return r.u.pageSize }

func (r *upstreamReader) Next() (*litestream.StreamRecordHeader, error) {
	select {
	case rec, ok := <-r.u.records:
		if !ok && r.u.end != nil {
			return nil, r.u.end
		} else if !ok {
			return nil, io.EOF
		}
		r.body = bytes.NewReader(rec.body)
		if r.u.cutAt > 0 {
			r.body = io.LimitReader(r.body, int64(r.u.cutAt))
		}
		return &rec.hdr, nil
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
}

func (r *upstreamReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.body.Read(p)
}

func (r *upstreamReader) Close() error {
	if r.closed {
		return errors.New("closed twice")
	}
	r.closed = true
	r.u.open.Add(-1)
	return nil
}

// upstreamAt is an upstream that knows its position.
type upstreamAt struct {
	*upstream
	pos atomic.Pointer[litestream.Pos]
}

func (u *upstreamAt) Pos() litestream.Pos { return *u.pos.Load() }

// testTimeout is what only a fault exceeds.
const testTimeout = 30 * time.Second

// site is a handler in a server, with its client.
type site struct {
	*streamhttp.Handler
	server *httptest.Server
	http   *http.Client
	url    string
	log    *logBuffer
}

// transports are the ways in which HTTP comes.
var transports = []string{"HTTP/1.1", "HTTP/2", "h2c"}

// newSite serves upstreams by name. setup, if not nil, changes the handler and
// the server before they start. The cleanup closes both and checks that no
// goroutine is left.
func newSite(t testing.TB, transport string, dbs map[string]litestream.StreamClient, setup func(*streamhttp.Handler, *http.Server)) *site {
	t.Helper()
	checkGoroutines(t)
	s := &site{
		Handler: streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) {
			db, ok := dbs[name]
			return db, ok
		}),
		log: &logBuffer{},
	}
	s.Handler.Logger = log.New(s.log, "", 0)
	s.server = httptest.NewUnstartedServer(s.Handler)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if setup != nil {
		setup(s.Handler, s.server.Config)
	}
	tr := &http.Transport{Protocols: new(http.Protocols)}
	switch transport {
	case "HTTP/1.1":
		tr.Protocols.SetHTTP1(true)
		s.server.Start()
	case "HTTP/2":
		tr.Protocols.SetHTTP2(true)
		s.server.EnableHTTP2 = true
		s.server.StartTLS()
		tr.TLSClientConfig = &tls.Config{RootCAs: s.server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	case "h2c":
		tr.Protocols.SetUnencryptedHTTP2(true)
		s.server.Config.Protocols = new(http.Protocols)
		s.server.Config.Protocols.SetUnencryptedHTTP2(true)
		s.server.Start()
	default:
		t.Fatalf("no transport %q", transport)
	}
	s.http = &http.Client{Transport: tr}
	s.url = s.server.URL + "/stream"
	t.Cleanup(func() {
		s.Close()
		tr.CloseIdleConnections()
		s.server.Close()
	})
	return s
}

// client returns a client for the database of that name.
func (s *site) client(name string) *streamhttp.Client {
	c := streamhttp.NewClient(s.url, name)
	c.HTTPClient = s.http
	return c
}

// mustStream begins a stream. The cleanup closes it.
func mustStream(t testing.TB, c litestream.StreamClient, pos litestream.Pos) litestream.StreamReader {
	t.Helper()
	r, err := c.Stream(t.Context(), pos)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// mustReceive reads the next record and expects it to be want.
func mustReceive(t testing.TB, r litestream.StreamReader, want record) {
	t.Helper()
	hdr, err := r.Next()
	if err != nil {
		t.Fatalf("next: %v; want %+v", err, want.hdr)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read the body of %+v: %v", *hdr, err)
	}
	if *hdr != want.hdr || !bytes.Equal(body, want.body) {
		t.Fatalf("received %+v with %d bytes, want %+v with %d", *hdr, len(body), want.hdr, len(want.body))
	}
}

// await waits until ok returns true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

var checked sync.Map // tests whose goroutines are counted

// checkGoroutines expects, when the test is over, as many goroutines as there
// were at its first call.
func checkGoroutines(t testing.TB) {
	t.Helper()
	if _, again := checked.LoadOrStore(t, nil); again {
		return
	}
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		var stacks []byte
		for deadline := time.Now().Add(testTimeout); runtime.NumGoroutine() > before; time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				stacks = make([]byte, 1<<20)
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu struct {
		sync.Mutex
		b strings.Builder
	}
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.b.String()
}
