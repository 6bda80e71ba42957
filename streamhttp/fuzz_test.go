package streamhttp_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// Whatever a hostile server sends, the reader hands on nothing but well-formed
// records in their order, byte for byte, and ends in an error that says what
// happened.
func FuzzClient(f *testing.F) {
	whole := encode(f, heartbeat(testPos(1, 1)), snapshot(3, 100), segment(3, 0, 50), segment(4, 0, 9), heartbeat(testPos(9, 0)))
	f.Add("", "4096", whole)
	f.Add("", "4096", whole[:len(whole)-60])
	f.Add(testPos(3, 4152).String(), "512", encode(f, segment(3, 4152, 70), snapshot(3, 1)))
	f.Add(testPos(3, 4152).String(), "65536", encode(f, segment(4, 0, 70), segment(4, 3, 1)))
	f.Add("", "0", []byte("<html>"))
	f.Add("", "4096", bytes.Repeat([]byte{0xff}, 80))
	const maxSize = 1 << 10
	f.Fuzz(func(t *testing.T, at, pageSize string, body []byte) {
		pos, err := litestream.ParsePos(at)
		if err != nil {
			return
		}
		c := streamhttp.NewClient("http://primary/stream", "app")
		c.MaxRecordSize = maxSize
		c.HTTPClient = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			resp := streamResponse(bytes.NewReader(body))
			resp.Header.Set(streamhttp.PageSizeHeader, pageSize)
			return resp, nil
		})}
		r, err := c.Stream(t.Context(), pos)
		if err != nil {
			if !errors.Is(err, streamhttp.ErrProtocol) {
				t.Fatal(err)
			}
			return
		}
		defer r.Close()
		if n := r.PageSize(); n < 512 || n > 65536 || n&(n-1) != 0 {
			t.Fatalf("page size %d", n)
		}
		rest, data := body, 0
		last := pos
		for {
			hdr, err := r.Next()
			if err != nil {
				switch {
				case err == io.EOF && len(rest) == 0:
				case errors.Is(err, streamhttp.ErrProtocol) && len(rest) >= litestream.StreamRecordHeaderSize:
				case errors.Is(err, streamhttp.ErrStreamBroken) && len(rest) < litestream.StreamRecordHeaderSize && len(rest) > 0:
				default:
					t.Fatalf("%d bytes left: %v", len(rest), err)
				}
				return
			}
			b, err := hdr.MarshalBinary()
			if err != nil || !bytes.HasPrefix(rest, b) {
				t.Fatalf("header %+v, %v; sent %x", hdr, err, rest[:min(len(rest), len(b))])
			}
			rest = rest[len(b):]
			if hdr.Size > maxSize {
				t.Fatalf("a record of %d bytes", hdr.Size)
			}
			got, err := io.ReadAll(r)
			want := rest[:min(int64(len(rest)), hdr.Size)]
			if !bytes.Equal(got, want) || (err == nil) != (int64(len(want)) == hdr.Size) {
				t.Fatalf("body of %+v: %d bytes, %v", hdr, len(got), err)
			}
			if err != nil {
				if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, streamhttp.ErrStreamBroken) {
					t.Fatal(err)
				}
				return
			}
			rest = rest[len(want):]
			if hdr.Size == 0 {
				continue
			}
			if hdr.Type == litestream.StreamRecordTypeSnapshot && data > 0 {
				t.Fatal("a snapshot behind other records")
			}
			if hdr.Type == litestream.StreamRecordTypeWALSegment {
				if n, err := litestream.ComparePos(last, hdr.Pos()); err != nil || n > 0 || hdr.Index-last.Index > 1 {
					t.Fatalf("%s follows %s: %v", hdr.Pos(), last, err)
				}
			}
			last, data = hdr.Pos(), data+1
		}
	})
}
