package replicatest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
)

// Two writes of one position, in step: whoever gathers their bytes in one
// place mixes them.
func testConcurrentWritesOfOne(t *testing.T, s *storage, k *kind) {
	pos := k.at(1)
	bodies := [][]byte{body(1, 200_000), body(2, 150_000)}
	started := []chan struct{}{make(chan struct{}), make(chan struct{})}
	var writers sync.WaitGroup
	clients := []litestream.ReplicaClient{s.client, s.other}
	for i, data := range bodies {
		r, once := bytes.NewReader(data), sync.Once{}
		halfway := func() {
			close(started[i])
			select {
			case <-started[1-i]:
			case <-time.After(lookTime): // the client makes it wait
			}
		}
		writers.Go(func() {
			o, err := k.write(t.Context(), clients[i], pos, readFunc(func(p []byte) (int, error) {
				if r.Len() < len(data)/2 {
					once.Do(halfway)
				}
				return r.Read(p[:min(len(p), 4096)])
			}))
			if err != nil {
				t.Errorf("write beside another of the same position: %v", err)
				return
			}
			o.check(t, pos, len(data))
		})
	}
	writers.Wait()
	if _, err := read(t.Context(), s.client, k, pos); err != nil {
		t.Errorf("after two writes: %v", err)
	}
	s.mustHoldWhole(t, k, pos, bodies...)
}

// Everybody writes, replaces, reads, lists and deletes at once.
func testConcurrent(t *testing.T, s *storage, k *kind) {
	workers, rounds := sizes(8, 4), sizes(12, 4)
	shared := k.at(1000)
	known := map[string]bool{} // all bodies
	lengths := map[int64]bool{}
	data := func(worker, round int) []byte { return body(worker*1000+round, 20_000+worker*100+round) }
	for w := range workers {
		for r := range rounds {
			known[string(data(w, r))] = true
			lengths[int64(len(data(w, r)))] = true
		}
	}
	var all sync.WaitGroup
	for w := range workers {
		c := s.clients()[w%len(s.clients())]
		all.Go(func() {
			for r := range rounds {
				own := k.at(w)
				for _, pos := range []litestream.Pos{own, shared} {
					o, err := k.write(t.Context(), c, pos, bytes.NewReader(data(w, r)))
					if err != nil {
						t.Errorf("write: %v", err)
						return
					}
					o.check(t, pos, len(data(w, r)))
				}
				if got, err := read(t.Context(), c, k, own); err != nil || !bytes.Equal(got, data(w, r)) {
					t.Errorf("read what nobody else writes: %s, %v", difference(got, data(w, r)), err)
				}
				got, err := read(t.Context(), c, k, shared)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("read what others write: %v", err)
				}
				if err == nil && !known[string(got)] {
					t.Errorf("read what others write: %d bytes that nobody wrote", len(got))
				}
				a, err := list(t.Context(), c, k, gen1)
				if err != nil {
					t.Errorf("list: %v", err)
				}
				count := map[litestream.Pos]int{}
				for _, o := range a {
					if count[o.pos]++; !lengths[o.size] {
						t.Errorf("listed with a size that nobody wrote: %s", o)
					}
				}
				if count[own] != 1 || count[shared] > 1 {
					t.Errorf("listed %d and %d times, want once", count[own], count[shared])
				}
				if names, err := c.Generations(t.Context()); err != nil || len(names) != 1 {
					t.Errorf("generations %q, %v", names, err)
				}
				pos := own
				if r%3 == w%3 {
					pos = shared
				}
				if err := k.remove(t.Context(), c, pos); err != nil {
					t.Errorf("delete: %v", err)
				}
				if pos != own {
					continue
				}
				if _, err := read(t.Context(), c, k, own); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("read what was deleted: error is %v", err)
				}
			}
			if _, err := k.write(t.Context(), c, k.at(w), io.LimitReader(bytes.NewReader(data(w, 0)), 20_000)); err != nil {
				t.Errorf("write: %v", err)
			}
		})
	}
	all.Wait()
	want := map[litestream.Pos][]byte{}
	for w := range workers {
		want[k.at(w)] = data(w, 0)[:20_000]
	}
	if err := k.remove(t.Context(), s.client, shared); err != nil {
		t.Errorf("delete: %v", err)
	}
	s.mustHold(t, k, want)
}
