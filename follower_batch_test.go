package litestream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"example.com/litestream/internal/fakeapp"
	"example.com/litestream/internal/fsys"
)

// memorySink is a pageSink.
type memorySink struct {
	pages     map[uint32][]byte
	old, size uint32
	committed bool
}

func (s *memorySink) begin() (uint32, error) { return s.old, nil }

func (s *memorySink) put(pgno uint32, page []byte) error {
	s.pages[pgno] = bytes.Clone(page)
	return nil
}

func (s *memorySink) commit(size uint32) error {
	s.size, s.committed = size, true
	return nil
}

// bytesStream is a stream of encoded records.
type bytesStream struct {
	r        *bytes.Reader
	left     int64
	pageSize int
}

func (s *bytesStream) PageSize() int { return s.pageSize }
func (s *bytesStream) Close() error  { return nil }

func (s *bytesStream) Read(p []byte) (int, error) {
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

func (s *bytesStream) Next() (*StreamRecordHeader, error) {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return nil, err
	}
	var b [StreamRecordHeaderSize]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		return nil, err
	}
	hdr := new(StreamRecordHeader)
	if err := hdr.UnmarshalBinary(b[:]); err != nil {
		return nil, err
	}
	s.left = hdr.Size
	return hdr, nil
}

// appendRecord encodes a record of uncompressed data.
func appendRecord(t testing.TB, b []byte, hdr StreamRecordHeader, data []byte) []byte {
	t.Helper()
	var body bytes.Buffer
	zw := newSegmentWriter(&body)
	if _, err := zw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	releaseSegmentWriter(zw)
	hdr.Size = int64(body.Len())
	h, err := hdr.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return append(append(b, h...), body.Bytes()...)
}

// fakeDatabase returns an empty database file of so many pages, in WAL mode.
func fakeDatabase(pageSize, pages int) []byte {
	b := make([]byte, pageSize*pages)
	copy(b, databaseMagic)
	binary.BigEndian.PutUint16(b[16:], uint16(pageSize))
	b[18], b[19] = 2, 2
	return b
}

const batchGeneration = "00000000000000aa"

// batchStream is a snapshot and two segments of a made-up application.
func batchStream(t testing.TB) (stream, wal []byte) {
	t.Helper()
	records, wal := batchRecords(t)
	return bytes.Join(records, nil), wal
}

func batchRecords(t testing.TB) (records [][]byte, wal []byte) {
	t.Helper()
	app, err := fakeapp.New(filepath.Join(t.TempDir(), "wal"), 512, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	for i := range 4 {
		if err := app.CommitSize(uint32(2+i%3), uint64(i), 4); err != nil {
			t.Fatal(err)
		}
	}
	wal = app.Committed(0)
	const half = WALHeaderSize + 2*(WALFrameHeaderSize+512)
	hdr := StreamRecordHeader{Type: StreamRecordTypeSnapshot, Flags: StreamRecordFlagPartial, Generation: batchGeneration}
	records = append(records, appendRecord(t, nil, hdr, fakeDatabase(512, 4)))
	hdr.Type = StreamRecordTypeWALSegment
	records = append(records, appendRecord(t, nil, hdr, wal[:half]))
	hdr.Flags, hdr.Offset = 0, half
	return append(records, appendRecord(t, nil, hdr, wal[half:])), wal
}

// readBatch reads one batch into an empty database.
func readBatch(stream []byte) (*memorySink, *followBatch, error) {
	sink := &memorySink{pages: map[uint32][]byte{}}
	b := &followBatch{pageSize: 512, sink: sink, name: "test"}
	s := &bytesStream{r: bytes.NewReader(stream), pageSize: 512}
	hdr, err := s.Next()
	if err != nil {
		return sink, b, err
	}
	return sink, b, b.read(context.Background(), s, hdr)
}

// A batch that is damaged in any byte changes nothing, or nothing but what the
// header of a record says of it.
func TestFollowBatch_DamageIsFound(t *testing.T) {
	stream, wal := batchStream(t)
	sink, b, err := readBatch(stream)
	if err != nil || !sink.committed || sink.size != 4 || b.state.pos.Offset != int64(len(wal)) {
		t.Fatalf("%v, %d pages, at %s", err, sink.size, b.state.pos)
	}
	want := sink.pages
	for i := range stream {
		bad := bytes.Clone(stream)
		bad[i] ^= 0x10
		sink, _, err := readBatch(bad)
		if err == nil && !sink.committed {
			t.Errorf("byte %d: no error, and no commit", i)
		}
		if sink.committed {
			for pgno, page := range want {
				if !bytes.Equal(sink.pages[pgno], page) {
					t.Fatalf("byte %d: page %d is wrong", i, pgno)
				}
			}
		}
	}
	for n := range stream {
		if sink, _, err := readBatch(stream[:n]); err == nil || sink.committed {
			t.Errorf("%d bytes of %d: %v", n, len(stream), err)
		}
	}
}

// A heartbeat between the records of a batch neither ends it nor moves it.
func TestFollowBatch_HeartbeatInside(t *testing.T) {
	records, wal := batchRecords(t)
	want, _, err := readBatch(bytes.Join(records, nil))
	if err != nil {
		t.Fatal(err)
	}
	hdr := StreamRecordHeader{Type: StreamRecordTypeWALSegment, Generation: batchGeneration, Index: 7, Offset: 4096}
	beat, err := hdr.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got, b, err := readBatch(bytes.Join(records, slices.Concat(beat, beat)))
	if err != nil || !got.committed {
		t.Fatalf("%v, committed %v", err, got.committed)
	}
	if at := (Pos{Generation: batchGeneration, Offset: int64(len(wal))}); b.state.pos != at {
		t.Errorf("at %s, want %s", b.state.pos, at)
	}
	if got.size != want.size || !maps.EqualFunc(got.pages, want.pages, bytes.Equal) {
		t.Errorf("%d pages, not what comes without heartbeats", got.size)
	}
	// The batch goes on behind one: without its last record it is not whole.
	got, _, err = readBatch(slices.Concat(records[0], beat, records[1], beat))
	if !errors.Is(err, io.ErrUnexpectedEOF) || got.committed {
		t.Errorf("a batch that a heartbeat ends: %v, committed %v", err, got.committed)
	}
}

// A page of a database that grew must come from somewhere.
func TestFollowBatch_MissingPageIsFound(t *testing.T) {
	stream, _ := batchStream(t)
	sink := &memorySink{pages: map[uint32][]byte{}}
	s := &bytesStream{r: bytes.NewReader(stream), pageSize: 512}
	if _, err := s.Next(); err != nil { // the snapshot is skipped
		t.Fatal(err)
	}
	hdr, err := s.Next()
	if err != nil {
		t.Fatal(err)
	}
	b := &followBatch{pageSize: 512, sink: sink, name: "test", state: followerState{pos: Pos{Generation: batchGeneration}}}
	if err := b.read(context.Background(), s, hdr); !errors.Is(err, ErrChecksumMismatch) || sink.committed {
		t.Errorf("page 1 did not come: %v", err)
	}
}

func FuzzFollowBatch(f *testing.F) {
	stream, _ := batchStream(f)
	f.Add(stream)
	f.Add(stream[:200])
	f.Fuzz(func(t *testing.T, stream []byte) {
		sink, b, err := readBatch(stream)
		if err != nil {
			if sink.committed {
				t.Errorf("committed, and failed: %v", err)
			}
			return
		}
		if !sink.committed || sink.size == 0 || b.state.pos.IsZero() {
			t.Fatalf("no error, and nothing was committed")
		}
		for pgno := uint32(1); pgno <= sink.size && pgno < 1<<20; pgno++ {
			if len(sink.pages[pgno]) != 512 && pgno != b.lockPage() {
				t.Fatalf("page %d of %d is missing", pgno, sink.size)
			}
		}
	})
}

func TestFollowerState_RoundTrip(t *testing.T) {
	_, wal := batchStream(t)
	h, err := parseWALHeader(wal)
	if err != nil {
		t.Fatal(err)
	}
	scan := newWALScan(startWAL(h))
	scan.feed(wal[WALHeaderSize:])
	name := filepath.Join(t.TempDir(), "follower")
	for _, s := range []storedState{
		{followerState{pos: Pos{batchGeneration, 7, 0}}, false, bootID{}},
		{followerState{pos: Pos{batchGeneration, 7, WALHeaderSize}, cursor: startWAL(h)}, false, bootID{1, 15: 2}},
		{followerState{pos: Pos{batchGeneration, 7, scan.tip.offset}, cursor: scan.tip}, true, bootID{}},
	} {
		b, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got storedState
		if err := got.UnmarshalBinary(b); err != nil || got != s {
			t.Errorf("%s: %v, got %s", s.pos, err, got.pos)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i]++
			if err := got.UnmarshalBinary(bad); err == nil {
				t.Errorf("%s: byte %d is not covered", s.pos, i)
			}
			if err := os.WriteFile(name, b[:i], 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := readFollowerState(fsys.OS, name); err != nil || got != (storedState{}) {
				t.Errorf("%d bytes: %v, %s", i, err, got.pos)
			}
		}
	}
}
