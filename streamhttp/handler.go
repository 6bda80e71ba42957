package streamhttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"example.com/litestream"
)

// Defaults of a Handler.
const (
	DefaultHeartbeatInterval = 3 * time.Second
	DefaultWriteTimeout      = 30 * time.Second
	DefaultMaxStreams        = 100
)

// closeGrace is how long Close lets streams come to the end of a record.
const closeGrace = 1 * time.Second

// Handler serves the streams of databases. Construct it with [NewHandler] and
// set its fields before the first request; its methods are then safe for
// concurrent use.
//
// Every goroutine that a request starts has ended when ServeHTTP returns.
type Handler struct {
	// Authorize decides about a request before the name is looked up. Its
	// error is logged; the client learns only that it is not authorized. Nil
	// admits everyone: see RequireBearerToken.
	Authorize func(r *http.Request, name string) error

	// HeartbeatInterval is the time without a record after which a heartbeat
	// is sent. 0 means DefaultHeartbeatInterval.
	HeartbeatInterval time.Duration

	// WriteTimeout is how long a follower may take none of 64 KiB before its
	// stream is cut, so that it does not keep what others no longer need. 0
	// means DefaultWriteTimeout. It takes the place of the server's.
	WriteTimeout time.Duration

	// MaxStreams is how many streams run at a time; a request beyond them is
	// answered with status 503. Each holds a compressed copy of its database on
	// the primary's disk while it sends a snapshot. 0 means DefaultMaxStreams.
	MaxStreams int

	// Logger receives why requests were refused and streams cut. NewHandler
	// sets one that writes to litestream.LogWriter.
	Logger *log.Logger

	lookup func(name string) (litestream.StreamClient, bool)
	done   chan struct{}      // closed when Close begins: streams end between records
	cut    context.Context    // ended when its grace is over
	cutAll context.CancelFunc // ends cut

	mu struct {
		sync.Mutex // leaf; guards:
		closed     bool
		streams    map[*stream]struct{}
	}
	running sync.WaitGroup // of mu.streams; added to with mu held
}

// NewHandler returns a Handler that serves the databases that lookup finds by
// name. It is called for each request, by many goroutines; names come from
// clients, so it must not take one for a path. It says false for a name that
// it does not know; a nil *litestream.DB says so too. A *litestream.DB is a
// StreamClient, and so is a Client, which makes a relay.
//
//	dbs := map[string]*litestream.DB{"app": db}
//	h := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) {
//		db, ok := dbs[name]
//		return db, ok
//	})
func NewHandler(lookup func(name string) (litestream.StreamClient, bool)) *Handler {
	h := &Handler{
		lookup: lookup,
		done:   make(chan struct{}),
	}
	if litestream.LogWriter != nil {
		h.Logger = log.New(litestream.LogWriter, "litestream: stream: ", litestream.LogFlags)
	}
	h.cut, h.cutAll = context.WithCancel(context.Background())
	h.mu.streams = make(map[*stream]struct{})
	return h
}

// ServeHTTP serves one stream until the follower leaves, the database ends it,
// or the handler is closed.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(VersionHeader, protocolVersion)
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "method not allowed: a stream is a GET", http.StatusMethodNotAllowed)
		return
	}
	q, err := parseRequest(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if h.Authorize != nil {
		if err := h.Authorize(r, q.name); err != nil {
			h.logf("%s refused to %s: %v", quote(q.name), r.RemoteAddr, err)
			w.Header().Set("WWW-Authenticate", `Bearer realm="litestream"`)
			http.Error(w, "not authorized", http.StatusUnauthorized)
			return
		}
	}
	if h.lookup == nil {
		h.logf("%s refused to %s: the handler has no lookup: NewHandler makes one", quote(q.name), r.RemoteAddr)
		http.Error(w, "the server is not set up", http.StatusInternalServerError)
		return
	}
	upstream, ok := h.lookup(q.name)
	if v := reflect.ValueOf(upstream); !ok || !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		http.Error(w, "no such database", http.StatusNotFound)
		return
	}
	s := newStream(h, w, upstream)
	if err := h.add(s); err != nil {
		h.logf("%s refused to %s: %v", quote(q.name), r.RemoteAddr, err)
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer h.remove(s)
	h.serve(s, r, q)
}

// serve runs a stream that is registered.
func (h *Handler) serve(s *stream, r *http.Request, q streamRequest) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(h.cut, cancel)()

	err := s.open(ctx, q.pos)
	if err != nil {
		if ctx.Err() == nil {
			h.logf("%s cannot be streamed to %s: %v", quote(q.name), r.RemoteAddr, err)
		}
		s.w.Header().Set("Retry-After", "1")
		http.Error(s.w, "the database cannot be streamed now", http.StatusServiceUnavailable)
		return
	}
	switch err := s.run(ctx, cancel); {
	case err == nil:
		return
	case r.Context().Err() != nil && !errors.Is(err, errStalled): // the follower left
	default:
		h.logf("stream of %s to %s cut: %v", quote(q.name), r.RemoteAddr, err)
	}
	panic(http.ErrAbortHandler) // else the client would take it for a clean end
}

// Close refuses new streams and ends those that run: between two records if
// they get there within a second, else in the middle of one. It returns when
// all have ended. [http.Server.Shutdown] waits for streams but does not end
// them, so register it:
//
//	server.RegisterOnShutdown(handler.Close)
func (h *Handler) Close() {
	if h.done == nil { // NewHandler did not make it: it has no streams
		return
	}
	h.mu.Lock()
	if !h.mu.closed {
		h.mu.closed = true
		close(h.done)
		for s := range h.mu.streams {
			s.hurry(time.Now().Add(closeGrace))
		}
		time.AfterFunc(closeGrace, h.cutAll)
	}
	h.mu.Unlock()
	h.running.Wait()
	h.cutAll()
}

// Streams returns how many streams run now.
func (h *Handler) Streams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.mu.streams)
}

func (h *Handler) add(s *stream) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.closed {
		return errors.New("shutting down")
	}
	if n := orDefault(h.MaxStreams, DefaultMaxStreams); len(h.mu.streams) >= n {
		return fmt.Errorf("too many streams: the limit is %d", n)
	}
	h.mu.streams[s] = struct{}{}
	h.running.Add(1)
	return nil
}

func (h *Handler) remove(s *stream) {
	h.mu.Lock()
	delete(h.mu.streams, s)
	h.mu.Unlock()
	h.running.Done()
}

func (h *Handler) logf(format string, a ...any) {
	if h.Logger != nil {
		h.Logger.Printf(format, a...)
	}
}

// quote makes what a client sent fit for a line of a log.
func quote(name string) string {
	const most = 100
	if len(name) > most {
		name = strings.ToValidUTF8(name[:most], "") + "..."
	}
	return fmt.Sprintf("%q", name)
}

func orDefault[T cmp.Ordered](v, def T) T {
	var zero T
	if v <= zero {
		return def
	}
	return v
}
