package litestream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// Whatever parses is the only spelling of its value.
func FuzzParsePos(f *testing.F) {
	f.Add("")
	f.Add(Pos{Generation: testGeneration}.String())
	f.Add(Pos{Generation: testGeneration, Index: MaxIndex, Offset: 4152}.String())
	f.Add(testGeneration + "/ffffffffffffffff:8000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePos(s)
		if err != nil {
			if p != (Pos{}) {
				t.Fatalf("%q: %#v beside the error %v", s, p, err)
			}
			return
		}
		if p.Index < 0 || p.Offset < 0 {
			t.Fatalf("%q: %#v", s, p)
		}
		if got := p.String(); got != s {
			t.Fatalf("%q formats as %q", s, got)
		}
		if c, err := ComparePos(p, p); err != nil || c != 0 {
			t.Fatalf("%q is not equal to itself: %d, %v", s, c, err)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	for _, s := range []string{"", "0000000000000000", "000000007fffffff", "7fffffffffffffff", "8000000000000000", "00000000000000 1", "+000000000000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseIndex(s)
		if err == nil && (v < 0 || FormatIndex(v) != s) || err != nil && v != 0 {
			t.Fatalf("%q: %d, %v", s, v, err)
		}
	})
}

func FuzzParseOffset(f *testing.F) {
	for _, s := range []string{"", "0000000000000000", "0000000000001038", "7fffffffffffffff", "8000000000000000", "0x00000000000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseOffset(s)
		if err == nil && (v < 0 || FormatOffset(v) != s) || err != nil && v != 0 {
			t.Fatalf("%q: %d, %v", s, v, err)
		}
	})
}

// addWALs adds whole, torn and corrupt WALs as seeds.
func addWALs(add func(wal []byte)) {
	for _, bigEndian := range []bool{false, true} {
		b := buildWAL(512, bigEndian, 1, -2, -1, 3)
		add(b)
		add(b[:len(b)-100])
		add(b[:WALHeaderSize])
		stale := bytes.Clone(b)
		restarted := newWALHeader(512, 0xfeedbef0, 9, bigEndian)
		copy(stale, restarted.raw[:])
		add(stale)
		b[700] ^= 1
		add(b)
	}
	add(nil)
}

// A header that parses is the one that its fields write, and SQLite's rules
// hold for it.
func FuzzWALHeader(f *testing.F) {
	addWALs(func(b []byte) { f.Add(b[:min(len(b), WALHeaderSize)]) })
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseWALHeader(b)
		if err != nil {
			if !h.isZero() {
				t.Fatalf("header %+v beside the error %v", h, err)
			}
			return
		}
		if h.pageSize < 512 || h.pageSize > 65536 || h.pageSize&(h.pageSize-1) != 0 {
			t.Fatalf("page size %d", h.pageSize)
		}
		if !bytes.Equal(h.raw[:], b[:WALHeaderSize]) {
			t.Fatal("raw bytes differ")
		}
		if s0, s1 := specChecksum(h.byteOrder(), 0, 0, b[:24]); s0 != h.sum1 || s1 != h.sum2 {
			t.Fatal("wrong checksum accepted")
		}
		if binary.BigEndian.Uint32(b[12:]) == 0 {
			if want := newWALHeader(h.pageSize, h.salt1, h.salt2, h.bigEndian); h != want {
				t.Fatalf("%+v, want %+v", h, want)
			}
		}
	})
}

// specScan finds the valid and committed bytes of the frames b as the text of
// https://www.sqlite.org/fileformat2.html says, with none of our code.
func specScan(h *walHeader, b []byte) (valid, committed int, pages uint32) {
	s0, s1 := h.sum1, h.sum2
	n := 24 + h.pageSize
	for ; len(b)-valid >= n; valid += n {
		frame := b[valid : valid+n]
		s0, s1 = specChecksum(h.byteOrder(), s0, s1, frame[:8])
		s0, s1 = specChecksum(h.byteOrder(), s0, s1, frame[24:])
		if binary.BigEndian.Uint32(frame) == 0 ||
			binary.BigEndian.Uint32(frame[8:]) != h.salt1 || binary.BigEndian.Uint32(frame[12:]) != h.salt2 ||
			binary.BigEndian.Uint32(frame[16:]) != s0 || binary.BigEndian.Uint32(frame[20:]) != s1 {
			break
		}
		if commit := binary.BigEndian.Uint32(frame[4:]); commit != 0 {
			committed, pages = valid+n, commit
		}
	}
	return valid, committed, pages
}

// sealFrames gives the first n frames of b the salts and checksums that make
// them valid, so that a fuzzer gets beyond the first frame.
func sealFrames(h walHeader, b []byte, n int) []byte {
	c := startWAL(h)
	size := h.frameSize()
	var sealed []byte
	for range n {
		if len(b) < size {
			break
		}
		f := walFrame{pgno: binary.BigEndian.Uint32(b), commit: binary.BigEndian.Uint32(b[4:])}
		sealed = c.appendFrame(sealed, f, b[WALFrameHeaderSize:size])
		b = b[size:]
	}
	return append(sealed, b...)
}

// A scan takes exactly what the specification takes, however its input is cut,
// and never moves beyond it.
func FuzzWALScan(f *testing.F) {
	addWALs(func(b []byte) {
		if len(b) >= WALHeaderSize {
			f.Add(b[WALHeaderSize:], true, uint8(0), uint16(0))
			f.Add(b[WALHeaderSize:], false, uint8(3), uint16(700))
		}
	})
	f.Fuzz(func(t *testing.T, b []byte, bigEndian bool, seal uint8, cut uint16) {
		h := newWALHeader(512, 0xfeedbeef, 7, bigEndian)
		b = sealFrames(h, b, int(seal))
		wantValid, wantCommitted, wantPages := specScan(&h, b)
		whole := newWALScan(startWAL(h))
		valid, committed := whole.feed(b)
		if valid != wantValid || committed != wantCommitted || whole.pages != wantPages {
			t.Fatalf("%d valid, %d committed, %d pages; want %d, %d, %d", valid, committed, whole.pages, wantValid, wantCommitted, wantPages)
		}
		if whole.tip.offset != int64(WALHeaderSize+valid) || whole.commit.offset != int64(WALHeaderSize+committed) {
			t.Fatalf("tip at %d, commit at %d", whole.tip.offset, whole.commit.offset)
		}
		if valid > 0 && !bytes.Equal(whole.tip.last[:], b[valid-h.frameSize():][:WALFrameHeaderSize]) {
			t.Fatal("last frame header differs")
		}
		parts := newWALScan(startWAL(h))
		n, _ := parts.feed(b[:min(int(cut), len(b))])
		parts.feed(b[n:])
		if parts != whole {
			t.Fatalf("a scan cut at %d differs", cut)
		}
	})
}

// ReadWALFields takes data if and only if all of it is valid.
func FuzzReadWALFields(f *testing.F) {
	addWALs(func(b []byte) {
		f.Add(b, 512, uint8(0))
		f.Add(b, 512, uint8(9))
		f.Add(b, 4096, uint8(0))
	})
	f.Fuzz(func(t *testing.T, b []byte, pageSize int, seal uint8) {
		if h, err := parseWALHeader(b); err == nil {
			b = append(bytes.Clone(h.raw[:]), sealFrames(h, b[WALHeaderSize:], int(seal))...)
		}
		salt0, salt1, sum0, sum1, bo, hdr, frame, err := ReadWALFields(bytes.NewReader(b), pageSize)
		h, herr := parseWALHeader(b)
		if herr != nil {
			if err == nil {
				t.Fatalf("header refused with %v, data accepted", herr)
			}
			return
		}
		valid, _, _ := specScan(&h, b[WALHeaderSize:])
		if want := h.pageSize == pageSize && WALHeaderSize+valid == len(b); want != (err == nil) {
			t.Fatalf("%d of %d bytes are valid: %v", WALHeaderSize+valid, len(b), err)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(hdr, b[:WALHeaderSize]) || salt0 != h.salt1 || salt1 != h.salt2 || bo != h.byteOrder() {
			t.Fatal("header fields differ")
		}
		if valid == 0 {
			if frame != nil || sum0 != h.sum1 || sum1 != h.sum2 {
				t.Fatalf("frame of %d bytes in a WAL without frames", len(frame))
			}
		} else if !bytes.Equal(frame, b[len(b)-h.frameSize():]) ||
			sum0 != binary.BigEndian.Uint32(frame[16:]) || sum1 != binary.BigEndian.Uint32(frame[20:]) {
			t.Fatal("last frame or its checksum differs")
		}
	})
}

// Whatever decodes is valid and encodes to the same bytes.
func FuzzStreamRecordHeader(f *testing.F) {
	for _, hdr := range []StreamRecordHeader{
		{Type: StreamRecordTypeSnapshot, Generation: testGeneration, Index: 4, Size: 9},
		{Type: StreamRecordTypeWALSegment, Flags: 1, Generation: "ffffffffffffffff", Index: MaxIndex, Offset: 4152, Size: 1 << 40},
	} {
		b, err := hdr.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[1:])
	}
	f.Add(bytes.Repeat([]byte{0xff}, StreamRecordHeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var hdr StreamRecordHeader
		if err := hdr.UnmarshalBinary(b); err != nil {
			if hdr != (StreamRecordHeader{}) {
				t.Fatalf("%+v beside the error %v", hdr, err)
			}
			return
		}
		if hdr.Index < 0 || hdr.Offset < 0 || hdr.Size < 0 || hdr.Flags < 0 || !IsGenerationName(hdr.Generation) {
			t.Fatalf("%+v", hdr)
		}
		if got, err := hdr.MarshalBinary(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x encodes as %x, %v", b, got, err)
		}
	})
}

// A frame never panics, never grows beyond what LZ4 can express, and never
// ends well without its end mark; and joining it keeps its meaning.
func FuzzFrameReader(f *testing.F) {
	for _, n := range []int{1, 100, segmentBlockSize + 1} {
		z := compressSegment(f, randomBytes(n))
		f.Add(z)
		f.Add(z[:len(z)-3])
		f.Add(append(bytes.Clone(z), z...))
		f.Add(append(bytes.Clone(z), 1, 2, 3, 4))
	}
	var other bytes.Buffer // the form that v0.4 wrote
	zw := lz4.NewWriter(&other)
	if _, err := zw.Write(randomBytes(1000)); err != nil {
		f.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(other.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		// One input byte stands for at most 255 output bytes; a block says no
		// more than its own size, so the sum is bounded by the input too.
		limit := int64(len(b)) * 256
		r := newFrameReader(io.NopCloser(bytes.NewReader(b)))
		var got bytes.Buffer
		n, err := io.Copy(&got, io.LimitReader(r, limit+1))
		if cerr := r.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if n > limit {
			t.Fatalf("%d bytes decompress to more than %d", len(b), limit)
		}
		if errors.Is(err, io.EOF) {
			t.Fatalf("io.EOF as an error: %v", err)
		}
		if err != nil {
			return
		}
		if n == 0 {
			t.Fatalf("%x decompresses to nothing without error", b)
		}
		j := joinSegments([]segmentSource{sourceOf(b), sourceOf(b)})
		joined, err := io.ReadAll(j)
		if cerr := j.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err != nil {
			return // not a segment of ours
		}
		twice := append(bytes.Clone(got.Bytes()), got.Bytes()...)
		if again, err := decompressFrame(joined); err == nil && !bytes.Equal(again, twice) {
			t.Fatalf("joined segments decompress to %d bytes, want %d", len(again), len(twice))
		}
	})
}
