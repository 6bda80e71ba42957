package streamhttp_test

import (
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// proxy passes connections to a server on, and breaks them as a network does.
type proxy struct {
	t      testing.TB
	ln     net.Listener
	target string
	passed atomic.Int64 // bytes from the server
	mode   atomic.Pointer[string]
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		conns map[net.Conn]struct{}
	}
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, ln: ln, target: target}
	p.set("pass")
	p.mu.conns = make(map[net.Conn]struct{})
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		p.set("pass")
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) set(mode string) { p.mode.Store(&mode) }

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.mu.conns {
		c.Close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.mu.conns[client], p.mu.conns[server] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { io.Copy(server, client); server.Close() })
		p.wg.Go(func() { p.pass(client, server); client.Close(); server.Close() })
	}
}

// pass passes what the server sends on, in the way of the mode.
func (p *proxy) pass(client, server net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := server.Read(b)
		if err != nil {
			return
		}
		switch *p.mode.Load() {
		case "half-open": // the server is gone, and the client not told
			for *p.mode.Load() == "half-open" {
				if n, _ := server.Read(b); n == 0 {
					return
				}
			}
			return
		case "stall": // nothing is taken
			for *p.mode.Load() == "stall" {
				time.Sleep(time.Millisecond)
			}
			return
		case "slow":
			for i := range n {
				if i%256 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		case "garbage":
			for i := range n {
				b[i] ^= 0x55
			}
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
		p.passed.Add(int64(n))
	}
}

// Whatever the network does, the follower recovers by itself once it is over,
// its readers see no state that is not one, and what it says meanwhile is what
// went wrong.
func TestEndToEnd_NetworkFaults(t *testing.T) {
	primary, app := mustPrimary(t)
	s := newSite(t, "HTTP/1.1", one(primary), func(h *streamhttp.Handler, _ *http.Server) {
		h.HeartbeatInterval = 20 * time.Millisecond
		h.WriteTimeout = 300 * time.Millisecond
	})
	p := newProxy(t, s.server.Listener.Addr().String())
	c := newClient(t, "http://"+p.ln.Addr().String()+"/stream")
	c.SilenceTimeout = 300 * time.Millisecond
	follower := mustFollower(t, c)
	mustEqual(t, primary, follower)
	reader := mustApp(t, follower.Path(), readerPragmas)

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			if err := transfer(app); err != nil {
				t.Errorf("transfer %d: %v", i, err)
				return
			}
		}
	})
	wg.Go(func() {
		if n, err := readUntil(done, reader); err != nil || n == 0 {
			t.Errorf("after %d reads: %v", n, err)
		}
	})
	streams := func() uint64 { return follower.Stats().Follower.Streams }
	recovers := func(fault string) {
		t.Helper()
		p.set("pass")
		pos := primary.Pos()
		await(t, "the follower recovers from "+fault, func() bool {
			n, err := litestream.ComparePos(follower.Pos(), pos)
			return err == nil && n >= 0 && follower.Stats().LastError == nil
		})
	}
	// breaks reports whether a fault was what the follower noticed. It was not
	// if a busy machine made the server silent just before.
	breaks := func(fault string) bool {
		t.Helper()
		before := streams()
		p.set(fault)
		await(t, fault+" is noticed", func() bool { return follower.Stats().LastError != nil })
		t.Logf("%s: %v", fault, follower.Stats().LastError)
		recovers(fault)
		return streams() > before
	}
	for round := range 2 {
		for _, fault := range []string{"cut", "half-open", "stall", "slow", "garbage"} {
			switch fault {
			case "cut":
				for range 3 {
					at := p.passed.Load()
					await(t, "data flows", func() bool { return p.passed.Load() > at })
					n := streams()
					p.cut()
					await(t, "a new stream", func() bool { return streams() > n })
				}
				recovers(fault)
			case "slow":
				p.set(fault)
				at := p.passed.Load()
				await(t, "data trickles", func() bool { return p.passed.Load() > at+20_000 })
				recovers(fault)
			default:
				broken := false
				for n := 0; n < 5 && !broken; n++ {
					broken = breaks(fault)
				}
				if !broken {
					t.Errorf("round %d, %s: the stream did not break", round, fault)
				}
			}
			if n := s.Streams(); n > 5 {
				t.Errorf("%d streams run", n)
			}
		}
	}
	close(done)
	wg.Wait()
	mustEqual(t, primary, follower)
	if err := checkAccounts(reader); err != nil {
		t.Error(err)
	}
	st := follower.Stats().Follower
	t.Logf("%d streams, %d snapshots", st.Streams, st.Snapshots)
}
