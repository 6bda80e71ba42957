package litestream

import "sync"

// bufferPool shares buffers of one size between all databases and restores of
// the process.
type bufferPool struct {
	size int
	pool sync.Pool
}

// chunks are for reading WALs, and for moving pages in a restore.
var chunks = bufferPool{size: maxChunk}

// maxChunk is how much is read at once, in bytes.
const maxChunk = 1 << 20

func (p *bufferPool) get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, p.size)
}

func (p *bufferPool) put(b []byte) {
	b = b[:p.size]
	p.pool.Put(&b)
}
