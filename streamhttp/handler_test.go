package streamhttp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

func one(u litestream.StreamClient) map[string]litestream.StreamClient {
	return map[string]litestream.StreamClient{"app": u}
}

// What an upstream gives arrives as it is, over every transport.
func TestStream_PassesRecordsUnchanged(t *testing.T) {
	partial := segment(8, 0, 70_000)
	partial.hdr.Flags = 1
	records := []record{snapshot(7, 300_000), segment(7, 0, 1), heartbeat(testPos(9, 9)), segment(7, 32, 65_536), partial, segment(8, 4152, 131_073)}
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := newUpstream()
			s := newSite(t, transport, one(u), nil)
			r := mustStream(t, s.client("app"), litestream.Pos{})
			if got := <-u.asked; !got.IsZero() {
				t.Errorf("the upstream was asked for %s", got)
			}
			if got := r.PageSize(); got != testPageSize {
				t.Errorf("page size %d", got)
			}
			for _, rec := range records {
				u.give(t, rec)
				mustReceive(t, r, rec)
			}
			close(u.records)
			for range 2 {
				if _, err := r.Next(); err != io.EOF {
					t.Fatalf("at the end: %v, want io.EOF", err)
				}
			}
			await(t, "the upstream's reader is closed", func() bool { return u.open.Load() == 0 })
			if got := s.log.String(); got != "" {
				t.Errorf("logged %q", got)
			}
		})
	}
}

func TestStream_AsksForThePosition(t *testing.T) {
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", map[string]litestream.StreamClient{"../a b&c=d#é": u}, nil)
	want := testPos(3, 4152)
	r := mustStream(t, s.client("../a b&c=d#é"), want)
	if got := <-u.asked; got != want {
		t.Errorf("the upstream was asked for %s, want %s", got, want)
	}
	u.give(t, segment(3, 4152, 10))
	mustReceive(t, r, segment(3, 4152, 10))
}

// A request that is not exactly a Client's is answered before anything else
// is done with it.
func TestHandler_RefusesOtherRequests(t *testing.T) {
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", one(u), func(h *streamhttp.Handler, _ *http.Server) {
		h.Authorize = streamhttp.RequireBearerToken("secret")
	})
	good := http.Header{"Authorization": {"Bearer secret"}}
	pos := "&pos=" + url.QueryEscape(testPos(1, 2).String())
	for _, tt := range []struct {
		name, method, query, body string
		header                    http.Header
		status                    int
		text                      string
	}{
		{name: "POST", method: "POST", query: "db=app", status: 405, text: "method"},
		{name: "HEAD", method: "HEAD", query: "db=app", status: 405},
		{name: "DELETE", method: "DELETE", query: "db=app", status: 405, text: "method"},
		{name: "body", query: "db=app", body: "x", status: 400, text: "body"},
		{name: "no name", query: "pos=", status: 400, text: `"db" is missing`},
		{name: "empty name", query: "db=", status: 400, text: `"db" is missing`},
		{name: "two names", query: "db=app&db=app", status: 400, text: "2 times"},
		{name: "two positions", query: "db=app" + pos + pos, status: 400, text: "2 times"},
		{name: "unknown parameter", query: "db=app&x=1", status: 400, text: `"x" is unknown`},
		{name: "upper case", query: "DB=app", status: 400, text: "unknown"},
		{name: "malformed query", query: "db=%zz", status: 400, text: "malformed"},
		{name: "semicolon", query: "db=app;pos=", status: 400, text: "malformed"},
		{name: "long query", query: "db=" + strings.Repeat("x", 5000), status: 400, text: "longer"},
		{name: "malformed position", query: "db=app&pos=1/2:3", status: 400, text: "position"},
		{name: "position with a space", query: "db=app" + pos + "+", status: 400, text: "position"},
		{name: "position in upper case", query: "db=app" + strings.ToUpper(pos[:5]) + pos[5:], status: 400, text: "unknown"},
		{name: "negative index", query: "db=app&pos=" + url.QueryEscape(testGeneration+"/ffffffffffffffff:0000000000000000"), status: 400, text: "position"},
		{name: "version 2", query: "db=app", header: http.Header{streamhttp.VersionHeader: {"2"}}, status: 400, text: "version"},
		{name: "two versions", query: "db=app", header: http.Header{streamhttp.VersionHeader: {"1", "1"}}, status: 400, text: "version"},
		{name: "no token", query: "db=app", header: http.Header{"Authorization": nil}, status: 401, text: "not authorized"},
		{name: "no token, no database", query: "db=other", header: http.Header{"Authorization": nil}, status: 401, text: "not authorized"},
		{name: "wrong token", query: "db=app", header: http.Header{"Authorization": {"Bearer secre"}}, status: 401, text: "not authorized"},
		{name: "wrong scheme", query: "db=app", header: http.Header{"Authorization": {"Basic secret"}}, status: 401, text: "not authorized"},
		{name: "no database", query: "db=other", status: 404, text: "no such database"},
		{name: "a path", query: "db=" + url.QueryEscape("/app"), status: 404, text: "no such database"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method := tt.method
			if method == "" {
				method = "GET"
			}
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+"?"+tt.query, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range []http.Header{good, tt.header} {
				for k, v := range h {
					req.Header[k] = v
				}
			}
			resp, err := s.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(string(b), tt.text) {
				t.Errorf("status %d, %q; want %d, %q", resp.StatusCode, b, tt.status, tt.text)
			}
			if got := resp.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
				t.Errorf("content type %q", got)
			}
			if got := resp.Header.Get("Allow"); (got == "GET") != (tt.status == 405) {
				t.Errorf("Allow: %q", got)
			}
			if got := resp.Header.Get("WWW-Authenticate"); (got != "") != (tt.status == 401) {
				t.Errorf("WWW-Authenticate: %q", got)
			}
		})
	}
	if n := len(u.asked); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	if got := s.log.String(); strings.Contains(got, "secre") {
		t.Errorf("a token was logged: %q", got)
	}
}

func TestHandler_AuthorizesBeforeItLooksUp(t *testing.T) {
	h := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) {
		t.Errorf("looked up %q", name)
		return nil, false
	})
	h.Logger = nil
	h.Authorize = func(r *http.Request, name string) error {
		if name != "app" {
			t.Errorf("authorize %q", name)
		}
		return errors.New("the reason")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/?db=app", nil))
	if w.Code != 401 || strings.Contains(w.Body.String(), "reason") {
		t.Errorf("status %d, %q", w.Code, w.Body)
	}
}

// A nil upstream is none, and so is a nil pointer to one, as Server.DB returns
// it for a path that is not watched.
func TestHandler_NilUpstreamIsNotFound(t *testing.T) {
	for _, u := range []litestream.StreamClient{nil, (*litestream.DB)(nil), (*streamhttp.Client)(nil)} {
		s := newSite(t, "HTTP/1.1", one(u), nil)
		if _, err := s.client("app").Stream(t.Context(), litestream.Pos{}); !errors.Is(err, streamhttp.ErrNotFound) {
			t.Errorf("%T: %v", u, err)
		}
	}
}

// A handler without a lookup answers, and says in the log what it lacks.
func TestHandler_WithoutALookup(t *testing.T) {
	old := litestream.LogWriter
	t.Cleanup(func() { litestream.LogWriter = old })
	litestream.LogWriter = nil
	for _, h := range []*streamhttp.Handler{streamhttp.NewHandler(nil), {}} {
		var logged bytes.Buffer
		for _, h.Logger = range []*log.Logger{h.Logger, log.New(&logged, "", 0)} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/?db=app", nil))
			if w.Code != 500 {
				t.Errorf("status %d, %q", w.Code, w.Body)
			}
		}
		if !strings.Contains(logged.String(), "NewHandler") {
			t.Errorf("logged %q", logged.String())
		}
		h.Close()
		h.Close()
		if n := h.Streams(); n != 0 {
			t.Errorf("%d streams", n)
		}
	}
}

func TestHandler_SaysThatAnUpstreamIsNotReady(t *testing.T) {
	for name, u := range map[string]*upstream{
		"error":     {failure: errors.New("inner reason"), asked: make(chan litestream.Pos, 1)},
		"page size": {asked: make(chan litestream.Pos, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "HTTP/1.1", one(u), nil)
			_, err := s.client("app").Stream(t.Context(), litestream.Pos{})
			if !errors.Is(err, streamhttp.ErrUnavailable) || strings.Contains(err.Error(), "inner") {
				t.Errorf("%v", err)
			}
			if got := s.log.String(); !strings.Contains(got, `"app" cannot be streamed`) || u.failure != nil && !strings.Contains(got, "inner reason") {
				t.Errorf("logged %q", got)
			}
			await(t, "the reader is closed", func() bool { return u.open.Load() == 0 && s.Streams() == 0 })
		})
	}
}

// Behind a middleware that hides deadlines nothing protects the primary from
// a follower that stalls.
func TestHandler_NeedsDeadlines(t *testing.T) {
	u := newUpstream()
	h := streamhttp.NewHandler(func(string) (litestream.StreamClient, bool) { return u, true })
	var logged logBuffer
	h.Logger.SetOutput(&logged)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/?db=app", nil))
	if w.Code != 503 || len(u.asked) != 0 || !strings.Contains(logged.String(), "this server cannot stream") {
		t.Errorf("status %d, logged %q", w.Code, &logged)
	}
}

func TestHandler_SendsHeartbeats(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := &upstreamAt{upstream: newUpstream()}
			pos := litestream.Pos{}
			u.pos.Store(&pos)
			s := newSite(t, transport, one(u), func(h *streamhttp.Handler, _ *http.Server) {
				h.HeartbeatInterval = 5 * time.Millisecond
			})
			r := mustStream(t, s.client("app"), litestream.Pos{})
			// At the zero position there is nothing to say.
			u.give(t, snapshot(0, 10))
			mustReceive(t, r, snapshot(0, 10))
			for _, pos := range []litestream.Pos{testPos(0, 32), testPos(2, 0)} {
				u.pos.Store(&pos)
				await(t, "a heartbeat at "+pos.String(), func() bool {
					hdr, err := r.Next()
					if err != nil {
						t.Fatal(err)
					}
					if hdr.Type != litestream.StreamRecordTypeWALSegment || hdr.Size != 0 || hdr.Flags != 0 {
						t.Fatalf("heartbeat %+v", *hdr)
					}
					return hdr.Pos() == pos
				})
			}
			close(u.records)
			await(t, "the end", func() bool { _, err := r.Next(); return err == io.EOF })
		})
	}
}

// An upstream without a position sends its own heartbeats, and one that began
// another generation ends the stream.
func TestHandler_SendsNoHeartbeatThatWouldBeWrong(t *testing.T) {
	other := litestream.Pos{Generation: "fedcba9876543210"}
	moved := &upstreamAt{upstream: newUpstream()}
	moved.pos.Store(&other)
	for name, u := range map[string]interface {
		litestream.StreamClient
		give(testing.TB, ...record)
	}{"relay": newUpstream(), "other generation": moved} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "HTTP/1.1", one(u), func(h *streamhttp.Handler, _ *http.Server) {
				h.HeartbeatInterval = time.Millisecond
			})
			r := mustStream(t, s.client("app"), testPos(3, 4152))
			for i := range 5 {
				time.Sleep(10 * time.Millisecond)
				rec := segment(3, 4152+int64(i), 10)
				u.give(t, rec)
				for {
					hdr, err := r.Next()
					if err != nil {
						t.Fatal(err)
					}
					if hdr.Size > 0 {
						break
					}
					if name == "relay" || i > 0 {
						t.Fatalf("heartbeat at %s", hdr.Pos())
					}
				}
			}
		})
	}
}

// A follower that takes nothing is dropped, and its upstream's reader closed:
// it must not keep what the primary could prune.
func TestHandler_DropsAStalledFollower(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := newUpstream()
			s := newSite(t, transport, one(u), func(h *streamhttp.Handler, _ *http.Server) {
				h.WriteTimeout = 200 * time.Millisecond
			})
			r := mustStream(t, s.client("app"), litestream.Pos{})
			u.give(t, snapshot(0, 64<<20)) // more than any buffer on the way
			await(t, "the stream is cut", func() bool { return s.Streams() == 0 && u.open.Load() == 0 })
			if got := s.log.String(); !strings.Contains(got, `stream of "app" to`) || !strings.Contains(got, "stalled") {
				t.Errorf("logged %q", got)
			}
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); !errors.Is(err, streamhttp.ErrStreamBroken) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read %d bytes, %v; want ErrStreamBroken", n, err)
			}
		})
	}
}

// A stream lives on when nothing is written for longer than the write timeout,
// and beyond the deadlines that the host set for its usual requests.
func TestHandler_IdleStreamOutlivesTheTimeouts(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			const timeout = 500 * time.Millisecond
			u := newUpstream()
			s := newSite(t, transport, one(u), func(h *streamhttp.Handler, server *http.Server) {
				h.WriteTimeout = timeout
				h.HeartbeatInterval = time.Hour
				server.ReadTimeout, server.WriteTimeout = timeout, timeout
			})
			r := mustStream(t, s.client("app"), litestream.Pos{})
			for i := range 2 {
				time.Sleep(2 * timeout)
				rec := segment(0, int64(i), 100)
				if i == 0 {
					rec = snapshot(0, 100)
				} else {
					rec.hdr.Offset = 0
				}
				u.give(t, rec)
				mustReceive(t, r, rec)
			}
		})
	}
}

func TestHandler_LimitsStreams(t *testing.T) {
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", one(u), func(h *streamhttp.Handler, _ *http.Server) { h.MaxStreams = 2 })
	first := mustStream(t, s.client("app"), litestream.Pos{})
	mustStream(t, s.client("app"), litestream.Pos{})
	_, err := s.client("app").Stream(t.Context(), litestream.Pos{})
	if !errors.Is(err, streamhttp.ErrUnavailable) || !strings.Contains(err.Error(), "too many streams: the limit is 2") {
		t.Fatalf("third stream: %v", err)
	}
	first.Close()
	await(t, "the first stream is over", func() bool { return s.Streams() == 1 })
	mustStream(t, s.client("app"), litestream.Pos{})
}

func TestHandler_EndsWithTheFollower(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := newUpstream()
			s := newSite(t, transport, one(u), nil)
			r := mustStream(t, s.client("app"), litestream.Pos{})
			u.give(t, snapshot(0, 10))
			mustReceive(t, r, snapshot(0, 10))
			r.Close()
			await(t, "the upstream's reader is closed", func() bool { return u.open.Load() == 0 && s.Streams() == 0 })
			if _, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("next after close: %v", err)
			}
			if got := s.log.String(); got != "" {
				t.Errorf("logged %q", got)
			}
		})
	}
}

// Only an end that is no fault looks like one to the follower.
func TestHandler_EndsAsTheUpstreamDoes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		clean bool
	}{
		{"end", io.EOF, true},
		{"closed", litestream.ErrDBClosed, true},
		{"generation", litestream.ErrGenerationChanged, true},
		{"fault", errors.New("disk on fire"), false},
		{"broken", io.ErrUnexpectedEOF, false},
	} {
		for _, transport := range transports {
			t.Run(tt.name+"/"+transport, func(t *testing.T) {
				u := newUpstream()
				u.end = tt.err
				s := newSite(t, transport, one(u), nil)
				r := mustStream(t, s.client("app"), litestream.Pos{})
				u.give(t, snapshot(0, 10))
				mustReceive(t, r, snapshot(0, 10))
				close(u.records)
				_, err := r.Next()
				if tt.clean != (err == io.EOF) || !tt.clean && !errors.Is(err, streamhttp.ErrStreamBroken) {
					t.Errorf("the follower sees %v", err)
				}
				await(t, "the end", func() bool { return s.Streams() == 0 })
				if got := s.log.String(); tt.clean != (got == "") {
					t.Errorf("logged %q", got)
				}
			})
		}
	}
}

// A body that ends early, as of a file that was removed, breaks the stream: the
// next header must not be taken for the rest of it.
func TestHandler_ShortBodyBreaksTheStream(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := newUpstream()
			u.cutAt = 1000
			s := newSite(t, transport, one(u), nil)
			r := mustStream(t, s.client("app"), litestream.Pos{})
			u.give(t, snapshot(0, 1001))
			_, err := r.Next()
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, streamhttp.ErrStreamBroken) {
				t.Errorf("%v", err)
			}
			await(t, "the end", func() bool { return u.open.Load() == 0 })
		})
	}
}

// Streams do not keep a server from shutting down, and their followers see a
// clean end.
func TestHandler_ClosesWithTheServer(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			u := newUpstream()
			s := newSite(t, transport, one(u), func(h *streamhttp.Handler, server *http.Server) {
				server.RegisterOnShutdown(h.Close)
			})
			var readers []litestream.StreamReader
			for range 3 {
				readers = append(readers, mustStream(t, s.client("app"), litestream.Pos{}))
			}
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			if err := s.server.Config.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
			for _, r := range readers {
				if _, err := r.Next(); err != io.EOF {
					t.Errorf("%v, want io.EOF", err)
				}
			}
			if n := u.open.Load(); n != 0 {
				t.Errorf("%d readers are open", n)
			}
		})
	}
}

func TestHandler_CloseRefusesNewStreams(t *testing.T) {
	s := newSite(t, "HTTP/1.1", one(newUpstream()), nil)
	s.Close()
	s.Close()
	if _, err := s.client("app").Stream(t.Context(), litestream.Pos{}); !errors.Is(err, streamhttp.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// Close does not wait for a follower that stalls, nor for an upstream that
// does, longer than its grace.
func TestHandler_CloseCutsWhatIsStuck(t *testing.T) {
	for _, transport := range transports {
		t.Run("follower/"+transport, func(t *testing.T) {
			u := newUpstream()
			s := newSite(t, transport, one(u), func(h *streamhttp.Handler, _ *http.Server) { h.WriteTimeout = time.Hour })
			mustStream(t, s.client("app"), litestream.Pos{})
			u.give(t, snapshot(0, 64<<20))
			mustCloseSoon(t, s)
		})
	}
	t.Run("upstream", func(t *testing.T) {
		u := &stuckUpstream{read: make(chan struct{})}
		s := newSite(t, "HTTP/1.1", one(u), nil)
		r := mustStream(t, s.client("app"), litestream.Pos{})
		<-u.read
		mustCloseSoon(t, s)
		_, err := r.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !errors.Is(err, streamhttp.ErrStreamBroken) {
			t.Errorf("%v", err)
		}
	})
}

func mustCloseSoon(t *testing.T, s *site) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); s.Close() }()
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Fatal("close hangs")
	}
	if n := s.Streams(); n != 0 {
		t.Errorf("%d streams after close", n)
	}
}

// stuckUpstream gives a record whose body never comes.
type stuckUpstream struct{ read chan struct{} }

func (u *stuckUpstream) Stream(ctx context.Context, _ litestream.Pos) (litestream.StreamReader, error) {
	return &stuckReader{u, ctx}, nil
}

type stuckReader struct {
	u   *stuckUpstream
	ctx context.Context
}

func (r *stuckReader) PageSize() int { return testPageSize }
func (r *stuckReader) Close() error  { return nil }

func (r *stuckReader) Next() (*litestream.StreamRecordHeader, error) {
	rec := snapshot(0, 10)
	return &rec.hdr, nil
}

func (r *stuckReader) Read([]byte) (int, error) {
	close(r.u.read)
	<-r.ctx.Done()
	return 0, r.ctx.Err()
}

// A stream ends with the context that the host gave its server.
func TestHandler_EndsWithTheServersContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", one(u), func(_ *streamhttp.Handler, server *http.Server) {
		server.BaseContext = func(net.Listener) context.Context { return ctx }
	})
	r := mustStream(t, s.client("app"), litestream.Pos{})
	cancel()
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("%v, want io.EOF", err)
	}
	await(t, "the end", func() bool { return u.open.Load() == 0 })
}
