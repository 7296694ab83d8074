"""Forms of Chinese texts: full and half width, and a small table of traditional characters.

The table holds common simplified characters with exactly one usual traditional form. Characters with several forms,
such as 发, 后, 干, 准 and 只, stay as they are.
"""

_PAIRS = (
    "爱愛 罢罷 备備 贝貝 笔筆 币幣 边邊 变變 标標 宾賓 补補 财財 参參 惨慘 层層 产產 长長 肠腸 场場 厂廠 车車 "
    "彻徹 称稱 迟遲 虫蟲 处處 传傳 创創 词詞 从從 错錯 达達 带帶 单單 当當 导導 灯燈 敌敵 递遞 点點 电電 东東 "
    "动動 对對 断斷 队隊 顿頓 儿兒 饭飯 飞飛 费費 风風 负負 妇婦 该該 盖蓋 刚剛 钢鋼 给給 个個 贡貢 够夠 构構 "
    "购購 顾顧 关關 观觀 馆館 惯慣 广廣 归歸 贵貴 国國 过過 还還 汉漢 号號 红紅 护護 华華 话話 坏壞 欢歡 环環 "
    "换換 黄黃 会會 货貨 机機 鸡雞 积積 极極 级級 记記 际際 继繼 价價 坚堅 艰艱 间間 检檢 见見 渐漸 剑劍 讲講 "
    "奖獎 酱醬 较較 阶階 节節 结結 紧緊 进進 惊驚 经經 静靜 镜鏡 旧舊 剧劇 觉覺 绝絕 军軍 开開 课課 块塊 宽寬 "
    "亏虧 来來 蓝藍 烂爛 劳勞 乐樂 泪淚 类類 离離 礼禮 丽麗 连連 脸臉 练練 恋戀 凉涼 两兩 辆輛 疗療 临臨 灵靈 "
    "领領 龙龍 楼樓 录錄 乱亂 论論 罗羅 妈媽 马馬 买買 卖賣 满滿 贸貿 没沒 门門 们們 梦夢 难難 脑腦 内內 鸟鳥 "
    "宁寧 农農 欧歐 盘盤 赔賠 贫貧 评評 凭憑 齐齊 骑騎 气氣 钱錢 浅淺 强強 桥橋 亲親 轻輕 请請 庆慶 穷窮 区區 "
    "权權 劝勸 确確 让讓 热熱 认認 荣榮 软軟 锐銳 赛賽 伤傷 烧燒 绍紹 设設 声聲 师師 时時 识識 实實 视視 试試 "
    "适適 释釋 书書 树樹 双雙 谁誰 顺順 说說 丝絲 诉訴 肃肅 虽雖 随隨 岁歲 损損 态態 谈談 汤湯 题題 体體 条條 "
    "铁鐵 听聽 厅廳 头頭 图圖 团團 万萬 网網 为為 围圍 温溫 闻聞 问問 无無 务務 误誤 习習 戏戲 细細 鲜鮮 闲閒 "
    "显顯 险險 现現 线線 乡鄉 响響 项項 销銷 写寫 谢謝 兴興 选選 学學 寻尋 压壓 亚亞 严嚴 颜顏 验驗 阳陽 样樣 "
    "药藥 爷爺 业業 页頁 医醫 艺藝 忆憶 义義 议議 异異 译譯 阴陰 银銀 饮飲 应應 营營 赢贏 拥擁 优優 邮郵 犹猶 "
    "鱼魚 语語 预預 员員 园園 圆圓 远遠 愿願 约約 阅閱 运運 杂雜 责責 择擇 则則 赠贈 战戰 张張 赵趙 这這 针針 "
    "阵陣 镇鎮 争爭 证證 织織 职職 执執 质質 终終 种種 众眾 昼晝 猪豬 专專 转轉 装裝 状狀 资資 总總 纵縱 组組 "
    "钻鑽"
)
_TRADITIONAL = {ord(pair[0]): pair[1] for pair in _PAIRS.split()}

_FIRST, _LAST, _SHIFT = 0x21, 0x7E, 0xFEE0
_FULL_WIDTH = {code: code + _SHIFT for code in range(_FIRST, _LAST + 1)}
_HALF_WIDTH = {full: code for code, full in _FULL_WIDTH.items()} | {0x3000: 0x20}


def to_traditional(text: str) -> str:
    """Returns a text with the traditional forms of the characters in the table."""
    return text.translate(_TRADITIONAL)


def to_full_width(text: str) -> str:
    """Returns a text whose ASCII letters, digits and marks have full width (Unicode FF01 to FF5E)."""
    return text.translate(_FULL_WIDTH)


def to_half_width(text: str) -> str:
    """Returns a text whose full-width letters, digits, marks and spaces have half width."""
    return text.translate(_HALF_WIDTH)
