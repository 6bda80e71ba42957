package streamhttp_test

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// newServer serves with fn. The cleanup checks that no goroutine is left.
func newServer(t testing.TB, fn http.HandlerFunc) *httptest.Server {
	t.Helper()
	checkGoroutines(t)
	s := httptest.NewServer(fn)
	t.Cleanup(s.Close)
	return s
}

// newClient returns a client with connections of its own.
func newClient(t testing.TB, url string) *streamhttp.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	c := streamhttp.NewClient(url, "app")
	c.HTTPClient = &http.Client{Transport: tr}
	return c
}

// startStream writes the headers of a stream, and the body's beginning.
func startStream(w http.ResponseWriter, body ...byte) {
	w.Header().Set("Content-Type", streamhttp.ContentType)
	w.Header().Set(streamhttp.VersionHeader, "1")
	w.Header().Set(streamhttp.PageSizeHeader, "4096")
	w.Write(body)
	w.(http.Flusher).Flush()
}

// A follower can tell what is worth trying again.
func TestClient_TellsErrorsApart(t *testing.T) {
	for status, want := range map[int]error{
		400: streamhttp.ErrProtocol,
		401: streamhttp.ErrUnauthorized,
		403: streamhttp.ErrUnauthorized,
		404: streamhttp.ErrProtocol, // a handler's own comes with its version
		405: streamhttp.ErrProtocol,
		429: streamhttp.ErrUnavailable,
		500: streamhttp.ErrUnavailable,
		502: streamhttp.ErrUnavailable,
		503: streamhttp.ErrUnavailable,
		204: streamhttp.ErrProtocol,
		302: streamhttp.ErrProtocol,
		307: streamhttp.ErrProtocol,
	} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/" {
				t.Errorf("the client followed a redirect")
			}
			w.Header().Set("Location", "/other")
			if status == 204 {
				w.WriteHeader(204)
				return
			}
			http.Error(w, "the \n reason"+strings.Repeat("!", 1<<20), status)
		})
		_, err := newClient(t, s.URL).Stream(t.Context(), litestream.Pos{})
		for _, kind := range []error{streamhttp.ErrProtocol, streamhttp.ErrUnauthorized, streamhttp.ErrNotFound, streamhttp.ErrUnavailable, streamhttp.ErrStreamBroken} {
			if errors.Is(err, kind) != (kind == want) {
				t.Errorf("status %d: %v is %v", status, err, kind)
			}
		}
		if err == nil || len(err.Error()) > 500 || status != 204 && !strings.Contains(err.Error(), `the \n reason`) {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

func TestClient_UnreachableServerIsUnavailable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, err = newClient(t, "http://"+ln.Addr().String()).Stream(t.Context(), litestream.Pos{})
	if !errors.Is(err, streamhttp.ErrUnavailable) {
		t.Error(err)
	}
}

func TestClient_RefusesBadURLs(t *testing.T) {
	for _, url := range []string{"", "primary:8080", "ftp://primary/", "http://", "http:///x", "http://primary/?a=b", "http://primary/%zz"} {
		if _, err := streamhttp.NewClient(url, "app").Stream(t.Context(), litestream.Pos{}); err == nil || errors.Is(err, streamhttp.ErrUnavailable) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestClient_RefusesOtherContent(t *testing.T) {
	for name, edit := range map[string]func(http.Header){
		"no version":    func(h http.Header) { h.Del(streamhttp.VersionHeader) },
		"version 2":     func(h http.Header) { h.Set(streamhttp.VersionHeader, "2") },
		"html":          func(h http.Header) { h.Set("Content-Type", "text/html") },
		"encoding":      func(h http.Header) { h.Set("Content-Encoding", "gzip") },
		"no page size":  func(h http.Header) { h.Del(streamhttp.PageSizeHeader) },
		"page size 1":   func(h http.Header) { h.Set(streamhttp.PageSizeHeader, "1") },
		"page size 4k":  func(h http.Header) { h.Set(streamhttp.PageSizeHeader, "4097") },
		"page size +":   func(h http.Header) { h.Set(streamhttp.PageSizeHeader, "+4096") },
		"page size 0":   func(h http.Header) { h.Set(streamhttp.PageSizeHeader, "04096") },
		"page size big": func(h http.Header) { h.Set(streamhttp.PageSizeHeader, "131072") },
	} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", streamhttp.ContentType)
			w.Header().Set(streamhttp.VersionHeader, "1")
			w.Header().Set(streamhttp.PageSizeHeader, "4096")
			edit(w.Header())
			if name == "encoding" {
				gzip.NewWriter(w).Close()
			}
		})
		if _, err := newClient(t, s.URL).Stream(t.Context(), litestream.Pos{}); !errors.Is(err, streamhttp.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What no upstream sends is an error, and is not handed on.
func TestClient_RefusesBadRecords(t *testing.T) {
	seg := func(index int, offset int64) record { return segment(index, offset, 100) }
	other := seg(3, 0)
	other.hdr.Generation = "fedcba9876543210"
	shifted := snapshot(3, 100)
	shifted.hdr.Offset = 32
	huge := heartbeat(testPos(3, 0))
	huge.hdr.Size = 1<<20 + 1
	garbage := encode(t, snapshot(3, 100))
	garbage[0] = 0xff
	p := testPos(3, 4152)
	for _, tt := range []struct {
		name string
		pos  litestream.Pos
		body []byte
		good int // records before the error
		want string
	}{
		{"garbage", litestream.Pos{}, garbage, 0, "type"},
		{"html", litestream.Pos{}, []byte("<!DOCTYPE html><html><body>404 page not found</body></html>"), 0, "type"},
		{"segment first", litestream.Pos{}, encode(t, seg(3, 0)), 0, "without a snapshot"},
		{"two snapshots", litestream.Pos{}, encode(t, snapshot(3, 100), snapshot(3, 100)), 1, "not the first"},
		{"snapshot after a segment", p, encode(t, seg(3, 4152), snapshot(3, 100)), 1, "not the first"},
		{"empty snapshot", litestream.Pos{}, encode(t, snapshot(3, 0)), 0, "empty"},
		{"snapshot with an offset", litestream.Pos{}, encode(t, shifted), 0, "offset"},
		{"too large", p, encode(t, huge), 0, "limit"},
		{"other place", p, encode(t, seg(3, 4153)), 0, "follow"},
		{"before", p, encode(t, seg(3, 0)), 0, "follow"},
		{"gap of an index", p, encode(t, seg(5, 0)), 0, "follow"},
		{"next index, not its start", p, encode(t, seg(4, 32)), 0, "follow"},
		{"other generation", p, encode(t, other), 0, "another generation"},
		{"gap after a snapshot", litestream.Pos{}, encode(t, snapshot(3, 100), seg(3, 32)), 1, "follow"},
		{"index after a snapshot", litestream.Pos{}, encode(t, snapshot(3, 100), seg(4, 0)), 1, "follow"},
		{"again", litestream.Pos{}, encode(t, snapshot(3, 100), seg(3, 0), seg(3, 0)), 2, "follow"},
		{"back", p, encode(t, seg(3, 4152), seg(3, 4000)), 1, "follow"},
		{"back an index", p, encode(t, seg(4, 0), seg(3, 4152)), 1, "follow"},
		{"heartbeats do not count", litestream.Pos{}, encode(t, heartbeat(p), snapshot(3, 100), heartbeat(testPos(9, 9)), seg(9, 9)), 3, "follow"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) { startStream(w, tt.body...) })
			c := newClient(t, s.URL)
			c.MaxRecordSize = 1 << 20
			r := mustStream(t, c, tt.pos)
			for i := range tt.good {
				if _, err := r.Next(); err != nil {
					t.Fatalf("record %d: %v", i, err)
				}
			}
			for range 2 {
				hdr, err := r.Next()
				if !errors.Is(err, streamhttp.ErrProtocol) || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%v, %v; want %q", hdr, err, tt.want)
				}
			}
			if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil {
				t.Errorf("read after the error: %d, %v", n, err)
			}
		})
	}
}

func TestClient_AcceptsWhatMayFollow(t *testing.T) {
	p := testPos(3, 4152)
	for name, tt := range map[string]struct {
		pos     litestream.Pos
		records []record
	}{
		"goes on":                 {p, []record{segment(3, 4152, 1), segment(3, 8000, 1), segment(4, 0, 1), segment(5, 0, 1)}},
		"goes on at the end":      {p, []record{segment(4, 0, 1)}},
		"snapshot":                {litestream.Pos{}, []record{snapshot(3, 1), segment(3, 0, 1), segment(3, 32, 1)}},
		"snapshot at a position":  {p, []record{snapshot(9, 1), segment(9, 0, 1)}},
		"heartbeats":              {p, []record{heartbeat(p), heartbeat(testPos(9, 9)), heartbeat(p), segment(3, 4152, 1)}},
		"heartbeat, snapshot":     {litestream.Pos{}, []record{heartbeat(p), snapshot(3, 1), segment(3, 0, 1)}},
		"at the start of a index": {testPos(3, 0), []record{segment(3, 0, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) { startStream(w, encode(t, tt.records...)...) })
			r := mustStream(t, newClient(t, s.URL), tt.pos)
			for _, rec := range tt.records {
				mustReceive(t, r, rec)
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

// Wherever a stream is cut, the follower learns that it was; but not at the
// end of a record of a response that ended.
func TestClient_NoticesACut(t *testing.T) {
	all := encode(t, snapshot(3, 100), segment(3, 0, 50), heartbeat(testPos(3, 32)))
	ends := map[int]bool{0: true, 140: true, 230: true, 270: true}
	for _, abort := range []bool{false, true} {
		for n := range len(all) + 1 {
			c := streamhttp.NewClient("http://primary", "app")
			c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				body := io.Reader(strings.NewReader(string(all[:n])))
				if abort {
					body = io.MultiReader(body, failingReader{})
				}
				return streamResponse(body), nil
			})}
			r := mustStream(t, c, litestream.Pos{})
			var err error
			for err == nil {
				if _, err = r.Next(); err == nil {
					_, err = io.Copy(io.Discard, r)
				}
			}
			clean := ends[n] && !abort
			if clean != (err == io.EOF) || clean == errors.Is(err, io.ErrUnexpectedEOF) || clean == errors.Is(err, streamhttp.ErrStreamBroken) {
				t.Errorf("%d bytes, aborted %t: %v", n, abort, err)
			}
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func streamResponse(body io.Reader) *http.Response {
	return &http.Response{
		StatusCode: 200,
		Header: http.Header{
			"Content-Type": {streamhttp.ContentType}, streamhttp.VersionHeader: {"1"}, streamhttp.PageSizeHeader: {"4096"},
		},
		Body: io.NopCloser(body),
	}
}

// A server that is silent is taken for dead, wherever it fell silent.
func TestClient_NoticesSilence(t *testing.T) {
	for name, tt := range map[string]struct {
		start []byte
		want  error
	}{
		"before the headers": {nil, streamhttp.ErrUnavailable},
		"after a record":     {encode(t, snapshot(3, 100)), streamhttp.ErrStreamBroken},
		"inside a header":    {encode(t, snapshot(3, 100), heartbeat(testPos(3, 0)))[:150], streamhttp.ErrStreamBroken},
		"inside a body":      {encode(t, snapshot(3, 100))[:90], streamhttp.ErrStreamBroken},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if tt.start != nil {
					startStream(w, tt.start...)
				}
				<-r.Context().Done()
			})
			c := newClient(t, s.URL)
			c.SilenceTimeout = 200 * time.Millisecond
			r, err := c.Stream(t.Context(), litestream.Pos{})
			for err == nil {
				if _, err = r.Next(); err == nil {
					_, err = io.Copy(io.Discard, r)
				}
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "silent for 200ms") {
				t.Error(err)
			}
			if r != nil {
				r.Close()
			}
		})
	}
}

// The time that a follower takes to apply a record is not the server's
// silence, and neither is the host's limit for other requests.
func TestClient_WaitsOnlyWhileItReads(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		startStream(w, encode(t, snapshot(3, 100), segment(3, 0, 100))...)
	})
	c := newClient(t, s.URL)
	c.SilenceTimeout, c.HTTPClient.Timeout = time.Second, time.Second
	r := mustStream(t, c, litestream.Pos{})
	mustReceive(t, r, snapshot(3, 100))
	time.Sleep(1500 * time.Millisecond)
	mustReceive(t, r, segment(3, 0, 100))
}

func TestClient_EndsWithItsContext(t *testing.T) {
	for name, start := range map[string][]byte{"before the headers": nil, "between records": encode(t, snapshot(3, 100)), "inside a body": encode(t, snapshot(3, 100))[:90]} {
		for _, closed := range []bool{false, true} {
			if closed && start == nil {
				continue
			}
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				if start != nil {
					startStream(w, start...)
				}
				<-r.Context().Done()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := make(chan litestream.StreamReader, 1)
			go func() { // the end comes while the reader waits, or before
				if start == nil {
					cancel()
				} else if r := <-began; closed {
					r.Close()
				} else {
					cancel()
				}
			}()
			r, err := newClient(t, s.URL).Stream(ctx, litestream.Pos{})
			if err == nil {
				defer r.Close()
				began <- r
			}
			for err == nil {
				if _, err = r.Next(); err == nil {
					_, err = io.Copy(io.Discard, r)
				}
			}
			if errors.Is(err, context.Canceled) == closed || err == io.EOF {
				t.Errorf("%s, closed %t: %v", name, closed, err)
			}
		}
	}
}

func TestClient_Authorizes(t *testing.T) {
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", one(u), func(h *streamhttp.Handler, _ *http.Server) {
		h.Authorize = streamhttp.RequireBearerToken("a secret")
	})
	c := s.client("app")
	for _, token := range []string{"other", "a secre", "a secret2"} {
		c.Authorize = streamhttp.BearerToken(token)
		if _, err := c.Stream(t.Context(), litestream.Pos{}); !errors.Is(err, streamhttp.ErrUnauthorized) || strings.Contains(err.Error(), token) {
			t.Errorf("token %q: %v", token, err)
		}
	}
	c.Authorize = streamhttp.BearerToken("")
	if _, err := c.Stream(t.Context(), litestream.Pos{}); err == nil || errors.Is(err, streamhttp.ErrUnauthorized) {
		t.Errorf("empty token: %v", err)
	}
	c.Authorize = streamhttp.BearerToken("a secret")
	mustStream(t, c, litestream.Pos{})
	if err := streamhttp.RequireBearerToken("")(&http.Request{Header: http.Header{"Authorization": {"Bearer "}}}, "app"); err == nil {
		t.Error("an empty token was accepted")
	}
}

// A follower's Next skips what was not read of a body.
func TestClient_NextSkipsTheRest(t *testing.T) {
	u := newUpstream()
	s := newSite(t, "HTTP/1.1", one(u), nil)
	r := mustStream(t, s.client("app"), litestream.Pos{})
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read before the first record: %d, %v", n, err)
	}
	u.give(t, snapshot(3, 200_000))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(n, err)
	}
	u.give(t, segment(3, 0, 10))
	mustReceive(t, r, segment(3, 0, 10))
}

// One handler may pass on what another sends.
func TestClient_IsAnUpstream(t *testing.T) {
	u := newUpstream()
	primary := newSite(t, "HTTP/1.1", one(u), nil)
	relay := newSite(t, "HTTP/2", one(primary.client("app")), nil)
	r := mustStream(t, relay.client("app"), litestream.Pos{})
	for _, rec := range []record{snapshot(3, 100_000), heartbeat(testPos(3, 0)), segment(3, 0, 10)} {
		u.give(t, rec)
		mustReceive(t, r, rec)
	}
	primary.Close()
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}
